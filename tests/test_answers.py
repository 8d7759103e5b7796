"""Numbers that are equal and unequal, what hostile text is refused for, and GSM8K's own solutions."""

import math
import pathlib
from fractions import Fraction

import pytest

from nca_jax.problems import bigbench, gsm8k
from nca_jax.problems import gsm8k as answers
from nca_jax.problems.problem import distinct

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'gsm8k'
PUBLISHED = pathlib.Path(__file__).parents[2] / 'shared' / 'data' / 'gsm8k'


@pytest.mark.parametrize(
    ('word', 'value'),
    [
        *(('72', 72), ('72.', 72), ('72.0', 72), ('+72', 72), ('-72', -72), ('\u221272', -72), ('0072', 72)),
        *(('1,080', 1080), ('1,450,000', 1450000), ('$1,080.50', Fraction(2161, 2)), ('-$5', -5), ('$-5', -5)),
        *(('50%', 50), ('.5', Fraction(1, 2)), ('1/2', Fraction(1, 2)), ('-3/4', Fraction(-3, 4)), ('6/4', 1.5)),
        *(('**72**', 72), ('"72"', 72), ('`72`.', 72), ('48/2=24', 24), ('x=24', 24), ('(72)', 72)),
        *(('2*(3+4)', 14), ('2+3*4', 14), ('10-2-3', 5), ('24/4/2', 3), ('2\u00d73', 6), ('6\u00f73', 2), ('--5', 5)),
        ('0.1+0.2', Fraction(3, 10)),
    ],
)
def test_numbers_are_read_exactly(word, value):
    assert answers.number(word) == value


@pytest.mark.parametrize(
    'word',
    [
        *('', '.', '-', 'seventy-two', '72km', 'x', '1,08', '1,0800', '10,80', '1 2', '1.2.3', '5e3', '1/0', '1/(2-2)'),
        *('()', '(1', '1)', '2**3', '2^3', '2(3)', '3!', '1_000', '0x10', 'nan', 'inf', '\u0663', '\u00b2', '5j'),
    ],
)
def test_what_is_no_number_is_none(word):
    assert answers.number(word) is None


@pytest.mark.parametrize(
    'word',
    [
        *('9**9**9**9', '10^10^10', '1e999999999', '1e-999999999', '99999!', '9!!!!', '2<<99999999999', '9' * 100_000),
        *('(' * 50_000 + '1' + ')' * 50_000, '-' * 60 + '1', '(' * 20 + '1' + ')' * 20, '1/' * 50_000 + '1'),
        *('__import__("os").abort()', 'exec("1")', '\\frac{' * 10_000, '[' * 50_000, 'sqrt(-1)', 'lambda:1', '{}[()]'),
        *('1' + ',000' * 30_000, '0.' + '0' * 99_999 + '1', '\x00', '\ud800', '=' * 100_000, '*' * 100_000),
    ],
)
def test_hostile_text_is_refused_by_the_limits(word):
    assert answers.number(word) is None
    assert not answers.same_number(f'Final Answer: {word}', ('1',))


def test_the_limits_are_where_they_are_said_to_be():
    most = answers.MAX_CHARACTERS
    assert answers.number('9' * most) == int('9' * most)
    assert answers.number('9' * (most + 1)) is None
    depth = answers.MAX_DEPTH
    assert answers.number('(' * depth + '7' + ')' * depth) == 7
    assert answers.number('(' * (depth + 1) + '7' + ')' * (depth + 1)) is None
    assert answers.number('-' * depth + '7') is not None
    assert answers.number('-' * (depth + 1) + '7') is None


def test_no_text_within_the_limits_makes_a_large_number():
    longest = '9*' * (answers.MAX_CHARACTERS // 2 - 1) + '99'
    for word in (longest, longest.replace('*', '/'), '9' * answers.MAX_CHARACTERS):
        value = answers.number(word)
        assert max(math.log10(value.numerator), math.log10(value.denominator)) <= answers.MAX_CHARACTERS


def test_the_answer_is_the_last_word():
    assert answers.same_number('a b\nFinal Answer: 72 \n', ('72',))
    assert not answers.same_number(' \n', ('72',))
    assert answers.same_number('so 5 + 67 = 72', ('72',))
    assert not answers.same_number('72 apples', ('72',))
    assert not answers.same_number('', ('72',))
    assert answers.same_number('7', ('8', '7'))


def test_words_are_equal_whatever_their_case():
    assert bigbench.same_text(' Yes\n', ('no', 'YES'))
    assert bigbench.same_text('Stra\u00dfe', ('STRASSE',))
    assert not bigbench.same_text('yes.', ('yes',))
    assert not bigbench.same_text('yes, it is', ('yes',))
    assert not bigbench.same_text('', ('yes',))


def wrong(answer):
    """Other numbers, written in ways that a lenient comparison takes for the answer."""
    value = int(answers.number(answer))
    yield from (f'{value + 1}', f'{value - 1}', f'{value}1', f'1{value}', f'{value}.5', f'{value + 1}/1')
    yield f'{value + 1:,}'
    if value:
        yield from (f'-{answer}' if value > 0 else answer[1:], f'{value * 10}', f'{value}0', f'{value}%0', f'{value}e1')
    if len(answer) > 1 and answer[-1] != answer[-2]:
        yield answer[:-2] + answer[-1] + answer[-2]


def check_solutions(sides):
    for problem in sides.train + sides.test:
        (answer,) = problem.answers
        assert answers.same_number(problem.target, problem.answers), problem.id
        for other in (f'${answer}', f'{answer}.', f'{answer}.00', f'{int(answers.number(answer)):,}', f'**{answer}**'):
            assert answers.same_number(f'Final Answer: {other}', problem.answers), (problem.id, other)
        head = problem.target.removesuffix(answer)
        for other in wrong(answer):
            assert not answers.same_number(head + other, problem.answers), (problem.id, other)
        assert not answers.same_number(head + answer + ' dollars', problem.answers)


def test_reference_solutions_are_right_and_perturbed_ones_wrong():
    """Twenty problems of our own, in GSM8K's format."""
    sides = gsm8k.read(str(GOLDEN))
    assert (len(sides.train), len(sides.test)) == (12, 8)
    check_solutions(sides)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason='GSM8K is not beside the checkout')
def test_published_solutions_are_right_and_perturbed_ones_wrong():
    sides = gsm8k.read(str(PUBLISHED))
    assert (len(sides.train), len(sides.test)) == (7473, 1319)
    assert not [problem.id for problem in sides.train + sides.test if '<<' in problem.target]
    assert len(distinct(sides.train, besides=sides.test)) == 7473
    check_solutions(sides)

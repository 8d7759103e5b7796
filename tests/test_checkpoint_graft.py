"""Oracle: NumPy slices, taken by hand from what each plan says."""

import copy
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nca_jax import trees
from nca_jax.checkpoint import graft
from nca_jax.errors import UserError

N, D, F, SIZE = 4, 8, 16, 10
WRITERS = 'blocks/(attn/o|mlp/down)/kernel'


@functools.cache
def model(seed, layers=N, padded=SIZE, width=D, tied=False, bias=False):
    """Parameters with the package's paths and no zeros, as a nested dict of NumPy arrays."""
    shapes = {
        'embed/table': (padded, width),
        'blocks/attn/q/kernel': (layers, width, 2, width // 2),
        'blocks/attn/o/kernel': (layers, 2, width // 2, width),
        'blocks/attn_norm/scale': (layers, width),
        'blocks/mlp/up/kernel': (layers, width, F),
        'blocks/mlp/down/kernel': (layers, F, width),
        'blocks/mlp_norm/scale': (layers, width),
        'final_norm/scale': (width,),
    }
    shapes |= {} if tied else {'head/kernel': (width, padded)}
    shapes |= {'head/bias': (padded,)} if bias else {}
    random = np.random.default_rng(seed)
    tree = {}
    for path, shape in shapes.items():
        *folders, name = path.split('/')
        node = functools.reduce(lambda node, folder: node.setdefault(folder, {}), folders, tree)
        node[name] = random.normal(size=shape).astype(np.float32)
    return tree


def transfer(plan, source, target, sizes=(SIZE, SIZE), **kwargs):
    pieces = graft.resolve(graft.parse(plan), source, target, *sizes)
    part = {path: leaf for path, leaf in trees.flatten(source).items() if path in graft.carried(pieces)}
    params, report = graft.graft(part, target, pieces, sizes[1], **kwargs)
    assert jax.tree.structure(params) == jax.tree.structure(target)
    return {path: np.asarray(leaf) for path, leaf in trees.flatten(params).items()}, report


def refused(plan, source, target, *words, sizes=(SIZE, SIZE)):
    with pytest.raises(UserError) as caught:
        graft.resolve(graft.parse(plan), source, target, *sizes)
    message = str(caught.value)
    assert '\n' not in message
    for word in words:
        assert word in message
    return message


def test_carried_leaves_are_bit_identical_and_fresh_ones_are_the_targets_own():
    source, target = copy.deepcopy(model(0)), model(1)
    source['final_norm']['scale'][:3] = [-0.0, np.float32(1e-42), np.nan]  # bits that arithmetic could alter
    plan = (('embed/.*', 'fresh'), ('head/.*', 'fresh'), ('.*', 'carry'))
    result, _ = transfer(plan, source, target)
    for path, leaf in result.items():
        parent, other = (source, target) if path.split('/')[0] in ('blocks', 'final_norm') else (target, source)
        assert leaf.tobytes() == trees.flatten(parent)[path].tobytes(), path
        assert leaf.tobytes() != trees.flatten(other)[path].tobytes(), path


def test_the_first_matching_entry_decides_per_layer_and_the_rest_falls_through():
    source, target = model(0), model(1)
    plan = (
        ('blocks/mlp/.*', 'fresh', {'layers': (1, 3)}),
        (WRITERS, 'carry', {'layers': (2, 4), 'scale': 0.2}),
        ('blocks/.*', 'carry'),
        ('.*', 'fresh'),
    )
    result, report = transfer(plan, source, target)
    theirs, ours = trees.flatten(source), trees.flatten(target)
    fifth = np.float32(0.2)
    down, down_theirs, down_ours = (tree['blocks/mlp/down/kernel'] for tree in (result, theirs, ours))
    np.testing.assert_array_equal(down[0], down_theirs[0])
    np.testing.assert_array_equal(down[1:3], down_ours[1:3])  # layer 2: the first entry wins over the second
    np.testing.assert_array_equal(down[3], down_theirs[3] * fifth)
    out, out_theirs = result['blocks/attn/o/kernel'], theirs['blocks/attn/o/kernel']
    np.testing.assert_array_equal(out[:2], out_theirs[:2])
    np.testing.assert_array_equal(out[2:], out_theirs[2:] * fifth)
    up = result['blocks/mlp/up/kernel']
    np.testing.assert_array_equal(up[[0, 3]], theirs['blocks/mlp/up/kernel'][[0, 3]])
    np.testing.assert_array_equal(up[1:3], ours['blocks/mlp/up/kernel'][1:3])
    np.testing.assert_array_equal(result['blocks/attn/q/kernel'], theirs['blocks/attn/q/kernel'])
    np.testing.assert_array_equal(result['embed/table'], ours['embed/table'])
    cuts = [(row['action'], row['layers'], row['scale']) for row in report if row['path'] == 'blocks/mlp/down/kernel']
    assert cuts == [('carry', (0, 1), 1.0), ('fresh', (1, 3), 1.0), ('carry', (3, 4), 0.2)]


def test_order_of_entries_matters():
    specific, general = ('final_norm/scale', 'fresh'), ('(?!final).*', 'carry')
    source, target = model(0), model(1)
    result, _ = transfer((specific, general), source, target)
    np.testing.assert_array_equal(result['final_norm/scale'], target['final_norm']['scale'])
    refused((('.*', 'carry'), specific), source, target, 'entry 1', 'final_norm', 'earlier entries')


def test_the_report_has_the_norms_and_survives_json():
    source, target = model(0), model(1, bias=False)
    plan = (('embed/.*', 'fresh'), ('head/.*', 'fresh'), (WRITERS, 'carry', {'scale': 0.5}), ('.*', 'carry'))
    _, report = transfer(plan, source, target)
    rows = {row['path']: row for row in report}
    out = source['blocks']['attn']['o']['kernel']
    row = rows['blocks/attn/o/kernel']
    np.testing.assert_allclose(row['norm'], np.linalg.norm(out) * 0.5, rtol=1e-6)
    np.testing.assert_allclose(rows['embed/table']['norm'], np.linalg.norm(target['embed']['table']), rtol=1e-6)
    assert json.loads(json.dumps(report)) == report
    lines = graft.lines(report)
    assert len(lines) == len(report) + 1
    assert next(line for line in lines if line.startswith('blocks/attn/o')).split()[1:3] == ['carry', '0.5']


def test_dropped_leaves_are_reported_and_not_carried():
    source, target = model(0, bias=True), model(1, tied=True)
    plan = (('head/.*', 'drop'), ('.*', 'carry'))
    _, report = transfer(plan, source, target)
    dropped = [row for row in report if row['action'] == 'drop']
    assert {row['path'] for row in dropped} == {'head/kernel', 'head/bias'}
    assert {row['norm'] for row in dropped} == {None}
    pieces = graft.resolve(graft.parse(plan), source, target, 1, 1)
    assert not any(path.startswith('head') for path in graft.carried(pieces))


@pytest.mark.parametrize(
    ('plan', 'source', 'target', 'words'),
    [
        ([('blocks/.*', 'carry')], {}, {}, ('no entry covers', 'embed/table')),
        ([('.*', 'carry', {'layers': (0, 3)}), ('(?!blocks).*', 'carry')], {}, {}, ('no entry covers', 'layer 3')),
        ([('.*', 'carry')], {'bias': True}, {}, ('head/bias', 'no counterpart', 'drop it')),
        ([('.*', 'fresh')], {'bias': True}, {}, ('head/bias', 'no counterpart', 'drop it')),
        ([('(?!head/b).*', 'carry')], {'bias': True}, {}, ('head/bias', 'no entry covers it')),
        ([('head/.*', 'drop'), ('.*', 'carry')], {}, {}, ('head/kernel', 'which the target has')),
        ([('.*', 'carry')], {'tied': True}, {}, ('head/kernel', 'the source does not have')),
        ([('head/.*', 'fresh'), ('.*', 'carry')], {'tied': True}, {'tied': True}, ('entry 0', 'claims nothing')),
        ([('head/b', 'drop'), ('.*', 'carry')], {'bias': True}, {'bias': True}, ('entry 0', 'claims nothing')),
        ([('.*', 'carry', {'layers': (4, 5)}), ('.*', 'carry')], {}, {}, ('entry 0', 'claims nothing')),
        ([('final.*', 'carry', {'layers': (0, 1)}), ('.*', 'carry')], {}, {}, ('entry 0', 'claims nothing')),
        ([('.*', 'carry'), ('.*', 'carry')], {}, {}, ('entry 1', 'claims nothing')),
        ([('.*', 'carry')], {'width': 16}, {}, ('blocks/attn/o/kernel', '(4, 2, 8, 16)', '(4, 2, 4, 8)')),
        ([('.*', 'carry')], {'layers': 3}, {}, ('layer 3', 'the source does not have')),
        ([('.*', 'carry')], {'layers': 5}, {}, ('layer 4', 'no counterpart')),
    ],
)
def test_every_leaf_and_every_entry_must_be_accounted_for(plan, source, target, words):
    refused(plan, model(0, **source), model(1, **target), *words)


def test_fresh_accounts_for_the_source_leaf_whatever_its_shape():
    result, _ = transfer((('embed.*|head.*', 'fresh'), ('.*', 'carry')), model(0, padded=30), model(1), (30, SIZE))
    np.testing.assert_array_equal(result['embed/table'], model(1)['embed']['table'])


def test_other_depths_need_words_for_every_layer():
    rest = ('embed.*|head.*', 'fresh'), ('.*', 'carry')
    source, target = model(0), model(1, layers=2)
    result, _ = transfer((('blocks/.*', 'drop', {'layers': (2, N)}), *rest), source, target)
    np.testing.assert_array_equal(result['blocks/mlp/up/kernel'], source['blocks']['mlp']['up']['kernel'][:2])
    result, _ = transfer((('blocks/.*', 'fresh', {'layers': (2, N)}), *rest), target, source)
    np.testing.assert_array_equal(result['blocks/mlp/up/kernel'][:2], target['blocks']['mlp']['up']['kernel'])
    np.testing.assert_array_equal(result['blocks/mlp/up/kernel'][2:], source['blocks']['mlp']['up']['kernel'][2:])


@pytest.mark.parametrize(('ours', 'theirs'), [(12, 16), (16, 12)])
def test_other_padding_carries_the_real_rows_alone(ours, theirs):
    source, target = model(0, padded=theirs, bias=True), model(1, padded=ours, bias=True)
    result, _ = transfer((('head/kernel', 'carry', {'scale': 2.0}), ('.*', 'carry')), source, target)
    for path, rows in (('embed/table', np.s_[:SIZE]), ('head/bias', np.s_[:SIZE]), ('head/kernel', np.s_[:, :SIZE])):
        expected = trees.flatten(target)[path].copy()
        expected[rows] = trees.flatten(source)[path][rows] * (2 if path == 'head/kernel' else 1)
        np.testing.assert_array_equal(result[path], expected)


def test_another_vocabulary_is_refused_even_when_the_padded_shapes_agree():
    refused((('.*', 'carry'),), model(0), model(1), 'embed/table', '9 tokens', '10', sizes=(9, SIZE))
    transfer((('embed.*|head.*', 'fresh'), ('.*', 'carry')), model(0), model(1), (9, SIZE))


def test_another_dtype_is_refused():
    target = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model(1))
    refused((('.*', 'carry'),), model(0), target, 'float32', 'bfloat16')


@pytest.mark.parametrize(
    'entry',
    [
        'carry',
        ('.*',),
        ('.*', 'keep'),
        ('(', 'carry'),
        (3, 'carry'),
        ('.*', 'carry', {'layer': (0, 1)}),
        ('.*', 'carry', 0.2),
        ('.*', 'carry', {}, {}),
        ('.*', 'carry', {'layers': (2, 2)}),
        ('.*', 'carry', {'layers': (-1, 2)}),
        ('.*', 'carry', {'layers': (0, 1.5)}),
        ('.*', 'carry', {'layers': (0, 1, 2)}),
        ('.*', 'carry', {'layers': 3}),
        ('.*', 'carry', {'scale': float('nan')}),
        ('.*', 'carry', {'scale': -1}),
        ('.*', 'carry', {'scale': '0.2'}),
        ('.*', 'carry', {'scale': True}),
        ('.*', 'fresh', {'scale': 0.2}),
    ],
)
def test_a_malformed_entry_is_named(entry):
    with pytest.raises(
        UserError, match=r'plan entry 1 .*: must be \(pattern, action\) or .* carry, fresh, drop'
    ) as caught:
        graft.parse((('a', 'carry'), entry))
    assert '\n' not in str(caught.value)


def test_the_result_is_laid_out_as_asked_on_every_mesh():
    source, target = model(0, padded=16), model(1, padded=16)
    plan = (('embed/.*', 'fresh'), (WRITERS, 'carry', {'layers': (1, 3), 'scale': 0.2}), ('.*', 'carry'))
    expected, _ = transfer(plan, source, target)
    mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    layouts = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), 'fsdp')), source)
    pieces = graft.resolve(graft.parse(plan), source, target, SIZE, SIZE)
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed, fresh = jax.device_put(source, layouts), jax.device_put(target, everywhere)
    params, _ = graft.graft(placed, fresh, pieces, SIZE, layouts)
    for path, leaf in trees.flatten(params).items():
        assert leaf.sharding.spec[-1] == 'fsdp'
        np.testing.assert_array_equal(np.asarray(leaf), expected[path], err_msg=path)

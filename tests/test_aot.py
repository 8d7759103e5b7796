"""Compiling for TPUs that aren't here: how the compiler's text is read, and, with the compiler, what comes of it."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from nca_jax import cli, experiment
from nca_jax.errors import UserError
from nca_jax.scale import collectives, fit

# As the compiler writes it, cut to what is read: a loop of 24 trips around a collective, and one that runs beside work.
PROGRAM = """HloModule jit_step

%begin (a: f32[8,16]) -> (f32[8,16], f32[32,16]) {
  %a = f32[8,16]{1,0} parameter(0)
  %ag = f32[32,16]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %begun = (f32[8,16]{1,0}, f32[32,16]{1,0}) custom-call(%ag), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (b: f32[8,16]) -> f32[8,16] {
  %b = f32[8,16]{1,0} parameter(0)
  ROOT %ag.1 = f32[32,16]{1,0} all-gather(%b), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%all-reduce-scatter.1 (c: f32[64]) -> f32[16] {
  %c = f32[64]{0} parameter(0)
  ROOT %sum = f32[64]{0} all-reduce(%c), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
}

%body (p: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %p = (s32[], bf16[64,128]{1,0}) parameter(0)
  %x = bf16[64,128]{1,0} get-tuple-element(%p), index=1
  %w = bf16[128,256]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %y = f32[8,16]{1,0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.1
}

%condition (q: (s32[], bf16[64,128])) -> pred[] {
  %q = (s32[], bf16[64,128]{1,0}) parameter(0)
  %limit = s32[] constant(24)
}

ENTRY %main (a: bf16[64,128]) -> bf16[64,128] {
  %a = bf16[64,128]{1,0} parameter(0)
  %async-start = (f32[8,16]{1,0}, f32[32,16]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %loop = (s32[], bf16[64,128]{1,0}) while(%a), condition=%condition, body=%body
  ROOT %piece = f32[16]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_collectives_count_as_often_as_their_loop_turns():
    """Of four members one has its quarter already; what begins before the loop and goes on in it counts once."""
    gathered = 24 * 128 * 256 * 2 * 3 / 4 + 32 * 16 * 4 * 3 / 4
    assert collectives.volumes(PROGRAM) == {'all-gather': gathered, 'reduce-scatter': 64 * 4 * 3 / 4}


@pytest.mark.parametrize(
    ('kind', 'operand', 'result', 'received'),
    [
        ('all-gather', 'f32[8]{0}', 'f32[32]{0}', 32 * 4 * 3 / 4),
        ('reduce-scatter', 'f32[32]{0}', 'f32[8]{0}', 8 * 4 * 3),
        ('all-reduce', 'f32[32]{0}', 'f32[32]{0}', 2 * 32 * 4 * 3 / 4),
        ('all-to-all', 'f32[32]{0}', 'f32[32]{0}', 32 * 4 * 3 / 4),
        ('collective-permute', 'f32[32]{0}', 'f32[32]{0}', 32 * 4),
    ],
)
def test_received_bytes_of_each_kind_at_once_or_asynchronously(kind, operand, result, received):
    groups = 'replica_groups={{0,1,2,3}}, dimensions={0}'
    parameter = f'  %p = {operand} parameter(0)\n'
    at_once = f'  ROOT %c = {result} {kind}(%p), {groups}\n'
    start = f'  %s = ({operand}, {result}, u32[]) {kind}-start(%p), {groups}\n'
    for lines in (at_once, start + f'  ROOT %d = {result} {kind}-done(%s)\n'):
        found = collectives.volumes(f'ENTRY %main (p: f32[32]) -> f32[32] {{\n{parameter}{lines}}}')
        assert found == {kind: received}


@pytest.mark.parametrize(
    ('text', 'count'),
    [
        ('replica_groups={{0,2},{1,3}}, dimensions={0}', 2),
        ('replica_groups=[2,4]<=[8]', 4),
        ('replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true', 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={1}", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,4]T(1,0)) {'axis_1'}, dimensions={1}", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
    ],
)
def test_members_of_a_collective(text, count):
    assert collectives.members(text) == count


def test_a_real_program_by_hand():
    """Each of three turns adds up a product's 16 x 16 over eight devices, which the compiler of a CPU writes alike."""
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((None, 'data'), ()))

    def turn(total, x):
        return jax.lax.with_sharding_constraint(total + x.T @ x, whole), None

    def program(x_3xBxD):
        return jax.lax.scan(turn, jnp.zeros((16, 16)), x_3xBxD)[0]

    lowered = jax.jit(program).lower(jax.ShapeDtypeStruct((3, 64, 16), jnp.float32, sharding=split))
    assert collectives.volumes(lowered.compile().as_text()) == {'all-reduce': 3 * 2 * 16 * 16 * 4 * 7 / 8}


def test_products_are_counted_as_often_as_they_run():
    """By hand, and as XLA itself counts them where nothing is in a loop."""

    def loss(w_NxDxD, x_BxD, unroll):
        layer = jax.checkpoint(lambda x_BxD, w_DxD: (jnp.sin(x_BxD @ w_DxD), None))
        return jax.lax.scan(layer, x_BxD, w_NxDxD, unroll=unroll)[0].sum()

    arguments = jnp.zeros((3, 32, 32)), jnp.zeros((8, 32))
    traced = jax.jit(jax.grad(functools.partial(loss, unroll=1))).trace(*arguments)
    product = 2 * 8 * 32 * 32
    assert fit.product_flops(traced.jaxpr.jaxpr) == 3 * 4 * product  # forward, again, and twice backward
    forward = jax.jit(functools.partial(loss, unroll=3)).trace(*arguments)
    assert fit.product_flops(forward.jaxpr.jaxpr) == 3 * product
    assert forward.lower().compile().cost_analysis()['flops'] == pytest.approx(3 * product, rel=0.01)


@pytest.mark.parametrize(
    ('message', 'needed', 'limit'),
    [
        (
            'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (8.00T) '
            'exceeds available HBM (15.75G).',
            *(8 * 2**40, 15.75 * 2**30),
        ),
        (
            'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. Exceeded hbm '
            'capacity by 5.75G.',
            *(21.5 * 2**30, 15.75 * 2**30),
        ),
    ],
)
def test_a_refusal_has_the_bytes_needed_and_the_limit(message, needed, limit):
    assert fit.parse_refusal(RuntimeError(message)) == (needed, limit)


def test_another_error_stays_what_it_is():
    error = RuntimeError('INTERNAL: broken')
    with pytest.raises(RuntimeError) as raised:
        fit.parse_refusal(error)
    assert raised.value is error


def test_unknown_slices_are_answered_with_the_known():
    assert cli.main(['aot', '--config=experiments/nca_pretrain.py', '--topology=v5e:3x3']) == 2
    with pytest.raises(UserError, match=r'--topology=v9:2x2: unknown; known are v4:2x2x1, .*v5e:4x4.*v6e:16x16'):
        fit.check_name('v9:2x2')


def test_without_the_compiler_nothing_begins(monkeypatch):
    monkeypatch.setattr(fit.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"the TPU compiler is not installed: pip install 'libtpu"):
        fit.check_name('v5e:2x2')


def test_a_mistake_in_the_config_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(fit, 'check_name', lambda name: None)
    assert cli.main(['aot', '--config=experiments/nca_pretrain.py:size=9b', '--topology=v5e:2x2']) == 2
    assert capsys.readouterr().err.count('\n') == 1


@functools.cache
def target() -> fit.Target:
    """256 sequences a step of GPT-2's vocabulary on a slice of four."""
    config = experiment.load('experiments/nca_pretrain.py:size=tiny', [('train.batch', '256')])
    return fit.make_target(config, 'v5e:2x2', jax.devices()[:4], 2**34)


MEMORY = {'none': 8, 'dots': 4, 'projections': 2, 'full': 1}  # of a sequence, of 64 that a chip has


def test_the_search_finds_the_largest_batch_for_each_remat(monkeypatch):
    said, tried = [], []

    def measure_step(choice: fit.Target) -> dict:
        remat, rows = choice.config.model.remat, choice.rows_per_chip
        tried.append((remat, rows))
        if rows == 32 and remat == 'projections':
            raise jax.errors.JaxRuntimeError('INTERNAL: no room in another memory\nand a page of text')
        return {'fits': MEMORY[remat] * rows <= 64, 'hbm_bytes': MEMORY[remat] * rows}

    monkeypatch.setattr(fit, 'measure_step', measure_step)
    choice, record = fit.search(target(), said.append)
    assert tried == [  # none that must fail
        *(('full', 64), ('projections', 64), ('projections', 32), ('projections', 16), ('dots', 16)),
        *(('none', 16), ('none', 8)),
    ]
    assert (choice.config.model.remat, choice.rows_per_chip, choice.config.train.batch) == ('none', 8, 256)
    assert record['hbm_bytes'] == 64
    assert any(line.endswith(': INTERNAL: no room in another memory') for line in said)


def test_a_search_in_which_nothing_fits(monkeypatch):
    monkeypatch.setattr(fit, 'measure_step', lambda choice: {'fits': False, 'hbm_bytes': 2**35})
    choice, record = fit.search(target(), lambda line: None)
    assert (choice.config.model.remat, choice.rows_per_chip, record['fits']) == ('full', 1, False)


SMALL = ['--config.model.layers=2', '--config.model.width=256', '--config.model.heads=4', '--config.model.ffn=512']
TINY = ['aot', '--config=experiments/nca_pretrain.py:size=tiny', '--topology=v5e:2x2', *SMALL]


@pytest.mark.full
@pytest.mark.parametrize('attention', ['einsum', 'splash'])
def test_a_small_run_on_four_chips(attention, capsys):
    """The very step, for both backends: the state is updated in place, and FLOPs are right."""
    changes = ['--config.model.dropout=0.0', f'--config.model.attention={attention}', '--config.mesh.fsdp=2']
    arguments = [*TINY, *changes, '--config.train.batch=16', '--config.mesh.shard_optimizer=True']
    assert cli.main([*arguments, '--json']) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found['hbm_bytes'] < found['hbm_limit'] == pytest.approx(15.75 * 2**30)
    assert found['alias_share'] >= 0.99
    # Remat computes the forward pass twice, and attention's mask hides half of what is computed.
    assert 1.0 < found['flops'] / found['model_flops'] < 1.7
    assert set(found['programs']) == {'evaluation', 'generator'}
    assert {'all-gather', 'reduce-scatter'} <= found['collective_bytes'].keys()


@pytest.mark.full
def test_an_evaluation_that_does_not_fit_is_told_apart_from_the_step(capsys):
    assert cli.main([*TINY, '--config.train.batch=16', '--config.eval.batch=16384', '--json']) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found['fits']
    assert not found['programs']['evaluation']['fits']
    assert found['programs']['generator']['fits']


@pytest.mark.full
def test_what_does_not_fit_says_so(capsys):
    changes = ['--config.model.remat=none', '--config.train.batch=512', '--json']
    assert cli.main(['aot', '--config=experiments/nca_pretrain.py:size=400m', '--topology=v5e:2x2', *changes]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not found['fits']
    assert found['hbm_bytes'] > found['hbm_limit'] == pytest.approx(15.75 * 2**30)

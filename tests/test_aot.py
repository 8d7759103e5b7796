"""Compiling for TPUs that aren't here: how the compiler's text is read, and, with the compiler, what comes of it."""

import json

import pytest

from nca_jax import aot
from nca_jax.errors import UserError
from nca_jax.estimate import hlo, topology

# As the compiler writes it, cut to what is read: a loop of 24 trips around a product, a collective and a kernel.
PROGRAM = """HloModule jit_step

%body (p: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %p = (s32[], bf16[64,128]{1,0}) parameter(0)
  %x = bf16[64,128]{1,0} get-tuple-element(%p), index=1
  %w = bf16[128,256]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %y = bf16[64,256]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="a/mlp/up/b"}, backend_config={"estimated_cycles":"1000"}
  %splash_mha_fwd.1 = bf16[1,2,128,64]{3,2,1,0} custom-call(%y), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[1,2,128,64]{3,2,1,0}}
}

%condition (q: (s32[], bf16[64,128])) -> pred[] {
  %q = (s32[], bf16[64,128]{1,0}) parameter(0)
  %limit = s32[] constant(24)
}

ENTRY %main (a: bf16[64,128]) -> bf16[64,128] {
  %a = bf16[64,128]{1,0} parameter(0)
  %loop = (s32[], bf16[64,128]{1,0}) while(%a), condition=%condition, body=%body
  %end = bf16[64,128]{1,0} add(%a, %a), metadata={op_name="a/norm/b"}, backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_loops_are_multiplied_out():
    found = hlo.read(PROGRAM)
    assert found.cycles == 24 * 1000 + 7
    assert found.cycles_by_part == {'mlp': 24_000, 'norms': 7}
    [kernel] = found.kernels
    assert (kernel.direction, kernel.shape, kernel.times) == ('forward', (1, 2, 128, 64), 24)
    product, attention = 2 * 64 * 128 * 256, 2 * 2 * 2 * 128**2 * 64
    assert found.flops == 24 * (product + attention)
    [gather] = found.collectives
    assert (gather.kind, gather.times) == ('all-gather', 24)
    assert gather.bytes == 128 * 256 * 2 * 3 / 4  # of four members one has its quarter already


def test_an_unknown_kernel_is_refused():
    with pytest.raises(UserError, match=r'calls a kernel, other_kernel.1, for which there is no estimate'):
        hlo.read(PROGRAM.replace('splash_mha_fwd', 'other_kernel'))


def test_unknown_slices_are_answered_with_the_known():
    assert aot.main(['--config=experiments/nca_pretrain.py', '--topology=v5e:3x3']) == 2
    with pytest.raises(UserError, match=r'--topology=v9:2x2: unknown; known are v4:2x2x1, .*v5e:4x4.*v6e:16x16'):
        topology.check_name('v9:2x2')


def test_without_the_compiler_nothing_begins(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"the TPU compiler is not installed: pip install 'libtpu"):
        topology.check_name('v5e:2x2')


def test_a_mistake_in_the_config_is_one_line(capsys):
    assert aot.main(['--config=experiments/nca_pretrain.py:size=9b', '--topology=v5e:2x2']) == 2
    assert capsys.readouterr().err.count('\n') == 1


SMALL = ['--config.model.layers=2', '--config.model.width=256', '--config.model.heads=4', '--config.model.ffn=512']


@pytest.mark.full
@pytest.mark.parametrize('attention', ['einsum', 'splash'])
def test_a_small_run_on_four_chips(attention, capsys):
    """The very step, for both backends: attention costs something, the state is updated in place, FLOPs are right."""
    changes = [*SMALL, '--config.model.dropout=0.0', f'--config.model.attention={attention}', '--config.mesh.fsdp=2']
    arguments = ['--config=experiments/nca_pretrain.py:size=tiny', '--topology=v5e:2x2', '--json', *changes]
    assert aot.main([*arguments, '--config.train.batch=16', '--config.mesh.shard_optimizer=True']) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found['hbm_bytes'] < found['hbm_limit'] == pytest.approx(15.75 * 2**30)
    assert found['shares']['attention'] > 0.02
    assert (found['kernel_seconds_estimate'] > 0) == (attention == 'splash')
    assert found['alias_share'] >= 0.99
    # Remat computes the forward pass twice, and attention's mask hides half of what is computed.
    assert 1.0 < found['flops'] / found['model_flops'] < 1.7
    assert 0 < found['mfu_estimate'] < 1
    assert found['tokens_per_second_estimate'] > 0
    assert set(found['programs']) == {'evaluation', 'decoding', 'generator'}
    assert found['collective_bytes']


@pytest.mark.full
def test_what_does_not_fit_says_so(capsys):
    changes = ['--config.model.remat=none', '--config.train.batch=512']
    asked = ['--config=experiments/nca_pretrain.py:size=400m', '--topology=v5e:2x2', *changes]
    assert aot.main(asked) == 1
    assert 'does not fit: the train step wants' in capsys.readouterr().err

"""Compiling for TPUs that aren't here: how the compiler's text is read, and, with the compiler, what comes of it."""

import json
from types import SimpleNamespace

import jax
import pytest

from nca_jax import experiment
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.errors import UserError
from nca_jax.experiment import from_dict
from nca_jax.scale import aot, chips, hlo, topology
from nca_jax.scale.report import DoesNotFitError, Target

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


def target(length: int = 1024) -> Target:
    """256 sequences a step of GPT-2's vocabulary on a slice of four."""
    changes = [f'--config.model.length={length}', '--config.train.batch=256']
    config = from_dict(experiment.load_values('experiments/nca_pretrain.py:size=tiny', changes))
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:4])
    where = topology.Slice('v5e:2x2', chips.TPUS['v5e'], tuple(jax.devices()[:4]), 1e9, 2**34, 8e11)
    return Target(config, where, mesh, Vocab(50_257))


MEMORY = {'none': 8, 'dots': 4, 'projections': 2, 'full': 1}  # of a sequence, of 64 that a chip has


def cheap_step(asked: Target) -> SimpleNamespace:
    """A step that is the faster the more it saves, has at a time, and the less it cuts its logits."""
    model, rows = asked.config.model, asked.rows_per_chip
    if rows == 32 and model.remat == 'full':
        raise jax.errors.JaxRuntimeError('INTERNAL: no room in another memory\nand a page of text')
    need = MEMORY[model.remat] * rows / model.loss_chunks**0.5
    if need > 64:
        raise DoesNotFitError(need, 64)
    mfu = (MEMORY[model.remat] / 10 + rows / 1000) / model.loss_chunks**0.1
    return SimpleNamespace(mfu=mfu, estimate=SimpleNamespace(memory=SimpleNamespace(total=need)))


@pytest.mark.parametrize(('length', 'chunks'), [(1024, {1, 4, 8}), (1020, {1, 4})])
def test_the_search_finds_the_best_that_fits(monkeypatch, length, chunks):
    tried, said = [], []
    monkeypatch.setattr(aot, 'train_step', lambda asked: tried.append(asked.config) or cheap_step(asked))
    model = (best := aot.search(target(length), said.append)).config.model
    assert (model.remat, best.rows_per_chip, model.loss_chunks) == ('none', 8, 1)
    assert {config.model.remat for config in tried} == set(MEMORY)
    assert {config.model.loss_chunks for config in tried} == chunks
    assert all(config.train.batch == 256 for config in tried)
    assert any(line.endswith(': INTERNAL: no room in another memory') for line in said)


def test_a_search_in_which_nothing_fits(monkeypatch):
    def never(asked):
        raise DoesNotFitError(None, 2**34)

    monkeypatch.setattr(aot, 'train_step', never)
    with pytest.raises(DoesNotFitError, match=r'the train step wants more of the 16\.00 GiB'):
        aot.search(target(), lambda line: None)


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
def test_an_evaluation_that_does_not_fit_is_told_apart_from_the_step(capsys):
    asked = ['--config=experiments/nca_pretrain.py:size=tiny', '--topology=v5e:2x2', *SMALL, '--config.train.batch=16']
    assert aot.main([*asked, '--config.eval.batch=16384', '--json']) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found['fits']
    assert found['mfu_estimate'] > 0
    assert not found['programs']['evaluation']['fits']
    assert found['programs']['generator']['fits']


@pytest.mark.full
def test_what_does_not_fit_says_so(capsys):
    changes = ['--config.model.remat=none', '--config.train.batch=512']
    asked = ['--config=experiments/nca_pretrain.py:size=400m', '--topology=v5e:2x2', *changes]
    assert aot.main(asked) == 1
    assert 'does not fit: the train step wants' in capsys.readouterr().err

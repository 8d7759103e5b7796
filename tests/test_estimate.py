"""How costs are read from a compiler's text: what the shortest programs that show a rule must give."""

import pytest

from nca_jax.scale import collectives, hlo, topology

LOOP = """HloModule jit_ring

%start (a: f32[8,16]) -> (f32[8,16], f32[32,16]) {
  %a = f32[8,16]{1,0} parameter(0)
  %ag = f32[32,16]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %begin = (f32[8,16]{1,0}, f32[32,16]{1,0}) custom-call(%ag), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (b: f32[8,16]) -> f32[8,16] {
  %b = f32[8,16]{1,0} parameter(0)
  ROOT %ag.1 = f32[32,16]{1,0} all-gather(%b), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%body (p: (u32[], f32[8,16])) -> (u32[], f32[8,16]) {
  %p = (u32[], f32[8,16]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %step = u32[] constant(STEP)
  %next = u32[] add(%i, %step)
  %y = f32[8,16]{1,0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"10"}
  ROOT %carry = (u32[], f32[8,16]{1,0}) tuple(%next, %y)
}

%condition (q: (u32[], f32[8,16])) -> pred[] {
  %limit = u32[] constant(8)
  %q = (u32[], f32[8,16]{1,0}) parameter(0)
  %j = u32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (m: f32[8,16]) -> f32[8,16] {
  %m = f32[8,16]{1,0} parameter(0)
  %async-start = (f32[8,16]{1,0}, f32[32,16]{1,0}) fusion(%m), kind=kCustom, calls=%start
  ROOT %loop = (u32[], f32[8,16]{1,0}) while(%m), condition=%condition, body=%body
}
"""  # noqa: E501


@pytest.mark.parametrize(('step', 'trips'), [(1, 8), (2, 4), (3, 3)])
def test_a_loop_may_count_in_larger_steps(step, trips):
    """Where the compiler writes two turns of a ring into one, the constant in the condition isn't the trips."""
    assert hlo.read(LOOP.replace('STEP', str(step))).cycles == 10 * trips


def test_an_asynchronous_collective_counts_once_wherever_it_goes_on():
    [gather] = hlo.read(LOOP.replace('STEP', '1')).collectives
    assert (gather.times, gather.beside, gather.bytes) == (1, True, 32 * 16 * 4 * 3 / 4)


@pytest.mark.parametrize(
    ('kind', 'shape', 'received'),
    [
        ('all-gather', '(f32[8]{0}, f32[32]{0})', 32 * 4 * 3 / 4),
        ('reduce-scatter', '(f32[32]{0}, f32[8]{0})', 8 * 4 * 3),
        ('all-reduce', 'f32[32]{0}', 2 * 32 * 4 * 3 / 4),
        ('collective-permute', '(f32[32]{0}, f32[32]{0})', 32 * 4),
    ],
)
def test_what_is_begun_has_the_shapes_of_operand_and_result(kind, shape, received):
    text = f'  ROOT %c = {shape} {kind}-start(%p), replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}\n'
    program = f'ENTRY %main (p: f32[32]) -> f32[32] {{\n  %p = f32[32]{{0}} parameter(0)\n{text}}}'
    [found] = hlo.read(program).collectives
    assert (found.kind, found.bytes, found.beside) == (kind, received, True)


@pytest.mark.parametrize(
    ('text', 'members'),
    [
        ('replica_groups={{0,2},{1,3}}, dimensions={0}', (0, 2)),
        ('replica_groups=[2,4]<=[8]', (0, 1, 2, 3)),
        ('replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true', (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={1}", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}", (0, 1, 2, 3)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", tuple(range(8))),
        ('source_target_pairs={{3,1},{1,3}}', (3, 1)),
    ],
)
def test_who_takes_part_in_a_collective(text, members):
    assert collectives.group(text) == members


def one_product(left: str, right: str, out: str, text: str) -> float:
    lines = f'  %l = bf16[{left}]{{0}} parameter(0)\n  %r = bf16[{right}]{{0}} parameter(1)\n'
    program = f'ENTRY %main (x: f32[]) -> f32[] {{\n{lines}  ROOT %o = f32[{out}]{{0}} convolution(%l, %r), {text}\n}}'
    return hlo.read(program).flops


def test_a_product_of_matrices_as_a_convolution():
    assert one_product('64,128', '128,32', '64,32', 'dim_labels=bf_io->bf') == 2 * 64 * 128 * 32


def test_a_batch_of_products_as_a_dilated_window():
    """Eight products of 64 x 128 x 32: an input has gaps as wide as the window, so that each output meets one tap."""
    window = 'window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf'
    assert one_product('8,64,128', '8,128,32', '8,64,32', window) == 8 * 2 * 64 * 128 * 32


def test_padding_multiplies_nothing():
    """A window of three over four places: ten pairs, the two outermost taps fall on padding."""
    window = 'window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f'
    assert one_product('1,4,1', '3,1,1', '1,4,1', window) == 2 * 10


@pytest.mark.parametrize(
    ('said', 'found'),
    [
        (
            'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (8.00T) '
            'exceeds available HBM (15.75G).',
            (8 * 2**40, 15.75 * 2**30),
        ),
        (
            'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. Exceeded hbm '
            'capacity by 5.75G.',
            (21.5 * 2**30, 15.75 * 2**30),
        ),
    ],
)
def test_a_refusal_tells_what_is_wanted_and_what_there_is(said, found):
    assert topology.out_of_memory(RuntimeError(said)) == found


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match='INTERNAL'):
        topology.out_of_memory(RuntimeError('INTERNAL: broken'))

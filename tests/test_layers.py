"""The order of imports: layers import downwards only, within a rank only inside one folder."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'nca_jax'

# The first prefix that fits decides; a module that fits none is an error, so that new ones must be placed.
RANKS = {
    'errors': -1,
    'trees': 0,
    'keys': 0,
    'atomic': 0,
    'bits': 0,
    'batch': 0,
    'chips': 0,
    'distributed': 0,
    'progress': 0,
    'experiment': 1,
    'new_folder': 1,
    'nca': 1,
    'mesh': 1,
    'model': 1,
    'model.decode': 2,  # it has a mesh to lay caches on
    'model.decode_programs': 2,
    'checkpoint.graft': 1,
    'checkpoint.torch_zip': 1,
    'data': 2,
    'train.duration': 2,
    'train.optimizer': 2,
    'train.state': 2,
    'train.step': 2,
    'checkpoint.store': 2,
    'checkpoint.manifest': 2,
    'evals': 3,
    'train.logger': 3,
    'train.metrics': 3,
    'train.profiler': 3,
    'train.tracking': 3,
    'train.loop': 3,
    'config': 4,
    'estimate': 5,
    'stages': 5,
    'run': 6,
    'command': 6,
    'finished': 7,
    'main': 8,
    'study': 8,
    'calibrate': 8,
    'show': 8,
    'aot': 8,
    'cost': 8,
    'export': 8,
    'adopt': 8,
    'harness': 8,
}
APART = 'report'


def modules() -> dict[str, pathlib.Path]:
    """Every module but the packages' own files, which hold a docstring at most."""
    paths = [path for path in sorted(PACKAGE.rglob('*.py')) if path.name != '__init__.py']
    return {'.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path for path in paths}


def imports(path: pathlib.Path) -> set[str]:
    """The modules of nca_jax that a file imports, without the package's name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f'{node.module}.{alias.name}' for alias in node.names} | {node.module}
    inside = {name.removeprefix('nca_jax.') for name in names if name.startswith('nca_jax.')}
    return inside & modules().keys()


def rank(module: str) -> int:
    fitting = [prefix for prefix in RANKS if module == prefix or module.startswith(prefix + '.')]
    assert fitting, f'{module} has no rank: place it in RANKS'
    return RANKS[max(fitting, key=len)]


@pytest.mark.parametrize('module', modules())
def test_imports_go_down(module):
    if module.split('.')[0] == APART:
        assert {name for name in imports(modules()[module]) if name.split('.')[0] not in (APART, 'errors')} == set()
        return
    for imported in imports(modules()[module]):
        if imported.split('.')[0] == APART:
            assert RANKS.get(module) == 8, f'{module} imports {imported}'  # commands alone
        elif rank(imported) == rank(module):
            folders = module.rpartition('.')[0].split('.')[0], imported.rpartition('.')[0].split('.')[0]
            assert folders[0] == folders[1] != '', f'{module} imports {imported}'
        else:
            assert rank(imported) < rank(module), f'{module} imports {imported}'


def test_evals_never_train():
    for name, path in modules().items():
        if name.startswith('evals'):
            assert not any(imported.startswith('train') for imported in imports(path))


def test_experiments_import_only_common():
    for path in (ROOT / 'experiments').glob('*.py'):
        nodes = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
        assert names <= {'ml_collections', 'experiments', *sys.stdlib_module_names}, path.name


def test_benchmarks_are_of_today():
    for path in (ROOT / 'experiments' / 'benchmarks').glob('*.py'):
        importlib.import_module(f'experiments.benchmarks.{path.stem}')
    importlib.import_module('experiments.benchmarks.nca').paper_config(1e-3)


def test_core_needs_no_other_framework():
    """As if they weren't installed: tensorboardX, for one, looks for torch by itself."""
    code = """
import sys

class Refusal:
    def find_spec(self, name, *rest):
        if name in ('torch', 'tensorflow', 'transformers', 'wandb'):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refusal())
import nca_jax.main, nca_jax.study, nca_jax.export, nca_jax.adopt, nca_jax.aot, nca_jax.cost
"""
    subprocess.run([sys.executable, '-c', code], check=True)

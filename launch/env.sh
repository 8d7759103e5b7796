# Sourced by the other scripts: stands in the repository's root with an up-to-date .venv, made from the lock file.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! cmp -s launch/requirements.lock .venv/requirements.lock; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nca_jax needs Python 3.11 or later")'
  echo "installing into .venv (once)"
  seconds=$SECONDS
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r launch/requirements.lock
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
  cp launch/requirements.lock .venv/requirements.lock
  echo "installed in $((SECONDS - seconds)) s"
fi

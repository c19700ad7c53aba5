# shellcheck shell=bash
# Own the project's virtual environments: tests/run.sh, .ci/run and examples/quickstart.sh source
# this file, from the project's root. It needs Python 3.10 or newer with pip, and nothing else.

# Print the first Python that is new enough; PYTHON in the environment comes before all others.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.{14,13,12,11,10} python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "Error: no Python 3.10 or newer found; install one, or set PYTHON to its path" >&2
  return 1
}

# Print one Python of each version from 3.10 on that this machine has, on PATH or below pyenv's root;
# the one of PYTHON alone where that is set.
find_pythons() {
  local minor candidate test root="" found=""
  if [[ -n ${PYTHON:-} ]]; then
    find_python
    return
  fi
  if command -v pyenv >/dev/null; then root=$(pyenv root) || root=""; fi
  for minor in 10 11 12 13 14; do
    # A name on PATH may be pyenv's for a version that is not in use; it fails.
    test="import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, $minor))"
    for candidate in "python3.$minor" "$root/versions/3.$minor."*/bin/python python3 python; do
      if "$candidate" -c "$test" 2>/dev/null; then
        found=yes
        printf '%s\n' "$candidate"
        break
      fi
    done
  done
  if [[ -z $found ]]; then find_python; fi
}

# Make the virtual environment FOLDER unless a working one is there.
make_environment() {
  local folder=$1 python
  if "$folder/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
  python=$(find_python) || return
  echo "Making $folder with $("$python" --version)" >&2
  if ! "$python" -m venv --clear "$folder" >/dev/null 2>&1; then
    # Debian keeps what venv needs for its own pip in a package of its own; any pip will do.
    "$python" -m venv --clear --without-pip "$folder" || return
    "$python" -m pip --python "$folder/bin/python" install --quiet pip || return
  fi
  # Windows calls the folder of programs Scripts; everything here calls it bin.
  if [[ -d $folder/Scripts && ! -e $folder/bin ]]; then
    cmd //c mklink //J "${folder//\//\\}\\bin" "${folder//\//\\}\\Scripts" >/dev/null || return
  fi
  # Dependency groups came with pip 25.1.
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
}

# prepare FOLDER CONSTRAINTS [GROUP...]: put the package, editable, and its dependency groups into
# the virtual environment FOLDER under a constraints file. What is there already is not repeated,
# until pyproject.toml or a constraints file changes.
prepare() {
  local folder=$1 constraints=$2 group fingerprint
  local -a groups=() arguments=()
  shift 2
  make_environment "$folder" || return
  fingerprint=$(cat pyproject.toml tests/constraints*.txt | "$folder/bin/python" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())') || return
  for group in package "$@"; do
    if [[ $(cat "$folder/.prepared-$group" 2>/dev/null) != "$fingerprint" ]]; then
      groups+=("$group")
      if [[ $group != package ]]; then arguments+=(--group "$group"); fi
    fi
  done
  if ((${#groups[@]} == 0)); then return; fi
  echo "Installing ${groups[*]} into $folder" >&2
  # torch is named although the package asks for it: its pin must hold for whoever else asks.
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --constraint "$constraints" torch --editable . "${arguments[@]+"${arguments[@]}"}" || return
  for group in "${groups[@]}"; do printf '%s\n' "$fingerprint" >"$folder/.prepared-$group"; done
}

# activate FOLDER CONSTRAINTS [GROUP...]: prepare it and put its programs first on PATH. One that
# CODELLAMA_CONVERT_ENVIRONMENT names is taken as it is: the suite runs scripts in its own.
activate() {
  local folder=${CODELLAMA_CONVERT_ENVIRONMENT:-}
  if [[ -z $folder ]]; then
    prepare "$@" || return
    folder=$PWD/$1
  fi
  PATH=$folder/bin:$PATH
}

#!/usr/bin/env bash
# A release in dist/, and its tag: `bash tools/release.sh VERSION`. Uploads nothing and pushes nothing.
#
# Wants a clean tree on `main` whose pyproject.toml, CITATION.cff and CHANGELOG.md name the version. Makes the sdist and
# the wheels of tools/build_wheels.sh, installs the sdist once more as a user would, and writes SHA256SUMS. Run
# `bash .ci/run` before.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "release.sh: $1" >&2
  exit 1
}

(($# == 1)) || fail 'name the version: bash tools/release.sh VERSION'
version=$1
tag=v$version

check_sources() {
  [[ $(git branch --show-current) == main ]] || fail "a release is made of main, this is $(git branch --show-current)"
  [[ -z $(git status --porcelain) ]] || fail 'there are changes that are not committed: git status'
  git rev-parse -q --verify "refs/tags/$tag" >/dev/null && fail "there is a tag $tag already"
  grep -qx "version = \"$version\"" pyproject.toml || fail "pyproject.toml names another version than $version"
  grep -qx "version: $version" CITATION.cff || fail "CITATION.cff names another version than $version"
  grep -q "^## \[$version\] - 20" CHANGELOG.md || fail "CHANGELOG.md has no section [$version] with a date"
}

build() {
  rm -rf dist build/release
  python3 -m venv build/release
  build/release/bin/pip install -q build twine
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) build/release/bin/python -m build -q --sdist --outdir dist
  build/release/bin/twine check --strict dist/*.tar.gz
  bash tools/build_wheels.sh dist
}

try_sdist() {
  python3 -m venv build/release/from_sdist
  build/release/from_sdist/bin/pip install -q dist/*.tar.gz
  [[ $(build/release/from_sdist/bin/python -c 'import lstmfast; print(lstmfast.__version__)') == "$version" ]] ||
    fail 'the sdist installs another version'
}

check_sources
build
try_sdist
(cd dist && sha256sum -- * >SHA256SUMS)
git tag -a "$tag" -m "lstmfast $version"
cat dist/SHA256SUMS
echo "Made dist/ and the tag $tag. Upload with: twine upload dist/*.tar.gz dist/*.whl; publish with: git push origin $tag"

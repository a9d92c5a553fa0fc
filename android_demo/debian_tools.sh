#!/usr/bin/env bash
# debian_tools.sh FOLDER: unpacks Debian's tools for Android into FOLDER, without installing anything.
#
# The suites are fixed, whatever runs here: bookworm has aapt, zipalign and apksigner; bullseye is the last one
# that has both dx and android.jar. Apt gets a state of its own, so that no root is needed and the host's stays as it is.
set -euo pipefail

TOOLS=$(mkdir -p "$1" && cd "$1" && pwd)
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
BOOKWORM="aapt android-libaapt android-libandroidfw android-libbacktrace android-libbase android-libcutils
  android-liblog android-libunwind android-libutils android-libziparchive apksigner libapksig-java libbsd0
  libexpat1 libmd0 libpng16-16 libprotobuf-lite32 libzopfli1 p7zip-full zipalign"
BULLSEYE="dalvik-exchange libandroid-23-java"

fail() { echo "debian_tools.sh: $*" >&2; exit 1; }

# The host's own mirror: the first address in its sources that is not of security updates.
mirror() {
  if [ -n "${DEBIAN_MIRROR:-}" ]; then
    echo "$DEBIAN_MIRROR"
  else
    cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null \
      | grep -v '^#' | grep -oE 'https?://[^ ]*debian/?( |$)' | tr -d ' ' | head -n 1 || true
  fi
}

apt() { # SUITE COMMAND...
  local state="$TOOLS/apt/$1"
  shift
  apt-get -qq -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::State::lists="$state/lists" \
    -o Dir::Cache="$state/cache" -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Acquire::Languages=none -o APT::Sandbox::User= "$@"
}

fetch() { # SUITE PACKAGE...
  local suite=$1 state="$TOOLS/apt/$1"
  shift
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$TOOLS/debs"
  : >"$state/status"
  echo "deb [signed-by=$KEYRING] $MIRROR $suite main" >"$state/sources.list"
  apt "$suite" update || fail "$MIRROR has no list of packages for $suite: set DEBIAN_MIRROR to one that has"
  (cd "$TOOLS/debs" && apt "$suite" download "$@") || fail "a package of $suite cannot be downloaded: try again"
}

wanted=$(printf '%s\n' $BOOKWORM $BULLSEYE)
if [ "$(cat "$TOOLS/complete" 2>/dev/null || true)" = "$wanted" ]; then
  echo "Debian's tools for Android: as downloaded before"
  exit 0
fi
for program in apt-get dpkg-deb; do
  command -v "$program" >/dev/null || fail "$program is missing: this needs Debian, or a system made from it"
done
[ -r "$KEYRING" ] || fail "$KEYRING is missing: install debian-archive-keyring"
MIRROR=$(mirror)
[ -n "$MIRROR" ] || fail "no Debian mirror is among apt's sources: set DEBIAN_MIRROR to the address of one"

echo "Debian's tools for Android: downloading about 20 MB"
rm -rf "$TOOLS/complete" "$TOOLS/debs" "$TOOLS/root"
# shellcheck disable=SC2086  # lists of words
fetch bookworm $BOOKWORM
# shellcheck disable=SC2086
fetch bullseye $BULLSEYE
for package in "$TOOLS"/debs/*.deb; do
  dpkg-deb -x "$package" "$TOOLS/root"
done
rm -rf "$TOOLS/debs" "$TOOLS/apt"
echo "$wanted" >"$TOOLS/complete"

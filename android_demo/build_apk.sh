#!/usr/bin/env bash
# build_apk.sh [--compile-only]: the demo as a signed debug APK, with a JDK and Debian's packages only.
#
#   ONNXRUNTIME_AAR=FILE   bundle the official onnxruntime-android: its classes and its arm64-v8a libraries
#   D8_JAR=FILE            d8.jar or r8.jar of an Android SDK, in place of Debian's dx
#   ANDROID_BUILD=FOLDER   where everything is built; build otherwise
#   ANDROID_TOOLS=FOLDER   where Debian's tools are kept; build/tools otherwise
#   DEBIAN_MIRROR=URL      where they come from; apt's own mirror otherwise
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
BUILD=${ANDROID_BUILD:-$HERE/build}
TOOLS=${ANDROID_TOOLS:-$HERE/build/tools}
SOURCES=("$HERE/app/src/main/java" "$HERE/engine/src/main/java")
MAIN=$HERE/app/src/main
APK=$BUILD/edge-gemma-demo.apk

fail() { echo "build_apk.sh: $*" >&2; exit 1; }
step() { echo "== $*"; }
property() { sed -n "s/^$1=//p" "$HERE/gradle.properties"; }

# Debian's native tools find their libraries in the unpacked packages; the JVM must not see these.
native() {
  local libraries
  libraries=$(find "$TOOLS/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
  LD_LIBRARY_PATH=$libraries "$TOOLS/root/usr/lib/android-sdk/build-tools/debian/$1" "${@:2}"
}
apksigner() {
  java -cp "$TOOLS/root/usr/share/java/apksigner.jar:$TOOLS/root/usr/share/java/apksig.jar" \
    com.android.apksigner.ApkSignerTool "$@"
}

compile_only=
case "${1:-}" in
  "") ;;
  --compile-only) compile_only=1 ;;
  *) fail "unknown option $1: the only one is --compile-only" ;;
esac
for program in java javac jar keytool; do
  command -v "$program" >/dev/null || fail "$program is missing: apt-get install openjdk-17-jdk-headless"
done
for jar in ONNXRUNTIME_AAR D8_JAR; do
  [ -z "${!jar:-}" ] || [ -f "${!jar}" ] || fail "$jar=${!jar} is not a file"
done
for folder in "${SOURCES[@]}"; do
  [ -d "$folder" ] || fail "$folder is missing: take the whole android_demo folder"
done

step "tools"
"$HERE/debian_tools.sh" "$TOOLS"
ANDROID_JAR=$TOOLS/root/usr/share/java/com.android.android-23.jar
mkdir -p "$BUILD"
rm -rf "$BUILD"/{generated,stubs,classes,aar,apk}
mkdir -p "$BUILD"/{generated,stubs,classes,aar,apk}

step "resources"
# The manifest names no package, as Gradle wants it; aapt wants it there.
sed "s|<manifest |<manifest package=\"$(property applicationId)\" |" "$MAIN/AndroidManifest.xml" \
  >"$BUILD/generated/AndroidManifest.xml"
native aapt package -f -m -J "$BUILD/generated" -F "$BUILD/apk/unaligned.apk" -M "$BUILD/generated/AndroidManifest.xml" \
  -S "$MAIN/res" -I "$ANDROID_JAR" -0 arsc --debug-mode \
  --min-sdk-version "$(property minSdk)" --target-sdk-version "$(property targetSdk)" \
  --version-code "$(property versionCode)" --version-name "$(property versionName)"

step "classes"
if [ -n "${ONNXRUNTIME_AAR:-}" ]; then
  aar=$(realpath "$ONNXRUNTIME_AAR")
  (cd "$BUILD/aar" && jar xf "$aar")
  [ -f "$BUILD/aar/classes.jar" ] || fail "$ONNXRUNTIME_AAR holds no classes.jar: is it onnxruntime-android's AAR?"
  binding=$BUILD/aar/classes.jar
else
  javac --release 8 -Xlint:all,-options -Werror -d "$BUILD/stubs" $(find "$HERE/compile_stubs" -name '*.java')
  binding=$BUILD/stubs
fi
find "${SOURCES[@]}" "$BUILD/generated" -name '*.java' >"$BUILD/sources.txt"
# A warning of the stubs' or the AAR's own class files is none of ours, hence -classfile.
javac --release 8 -encoding UTF-8 -Xlint:all,-options,-classfile -Werror -cp "$ANDROID_JAR:$binding" \
  -d "$BUILD/classes" "@$BUILD/sources.txt"
echo "$(wc -l <"$BUILD/sources.txt") sources, $(find "$BUILD/classes" -name '*.class' | wc -l) classes"
if [ -n "$compile_only" ]; then
  echo "compiled, nothing more was asked for"
  exit 0
fi

step "dex"
inputs=("$BUILD/classes")
if [ -n "${ONNXRUNTIME_AAR:-}" ]; then
  mkdir -p "$BUILD/aar/classes"
  (cd "$BUILD/aar/classes" && jar xf ../classes.jar && rm -rf META-INF)
  inputs+=("$BUILD/aar/classes")
fi
if [ -n "${D8_JAR:-}" ]; then
  find "${inputs[@]}" -name '*.class' >"$BUILD/classes.txt"
  java -cp "$D8_JAR" com.android.tools.r8.D8 --debug --min-api "$(property minSdk)" --lib "$ANDROID_JAR" \
    --output "$BUILD/apk" "@$BUILD/classes.txt"
else
  # dx copies lambdas as they are, and Android has no class to make them work.
  lambdas=$(grep -rlF java/lang/invoke/LambdaMetafactory "${inputs[@]}" | head -n 1 || true)
  [ -z "$lambdas" ] || fail "$(basename "$lambdas") has a lambda, which dx cannot translate: set D8_JAR to the d8.jar of an Android SDK"
  java -jar "$TOOLS/root/usr/share/java/com.android.dx.jar" --dex --min-sdk-version="$(property minSdk)" \
    --output="$BUILD/apk/classes.dex" "${inputs[@]}"
fi

step "apk"
contents=(classes.dex)
if [ -n "${ONNXRUNTIME_AAR:-}" ]; then
  [ -d "$BUILD/aar/jni/arm64-v8a" ] || fail "$ONNXRUNTIME_AAR holds no libraries for arm64-v8a"
  mkdir -p "$BUILD/apk/lib"
  cp -r "$BUILD/aar/jni/arm64-v8a" "$BUILD/apk/lib/"
  contents+=($(cd "$BUILD/apk" && find lib -name '*.so'))
fi
(cd "$BUILD/apk" && native aapt add unaligned.apk "${contents[@]}" >/dev/null)
native zipalign -f -p 4 "$BUILD/apk/unaligned.apk" "$BUILD/apk/aligned.apk"

step "signature"
if [ ! -f "$BUILD/debug.keystore" ]; then
  keytool -genkeypair -keystore "$BUILD/debug.keystore" -storepass android -keypass android -alias debug \
    -keyalg RSA -keysize 2048 -validity 10000 -dname "CN=edge-gemma debug" >"$BUILD/keytool.log" 2>&1 \
    || fail "keytool cannot make a key: see $BUILD/keytool.log"
fi
apksigner sign --ks "$BUILD/debug.keystore" --ks-pass pass:android --min-sdk-version "$(property minSdk)" \
  --out "$APK" "$BUILD/apk/aligned.apk"

step "check"
apksigner verify --verbose "$APK" | grep -E '^Verifie[sd]'
native aapt dump badging "$APK" >"$BUILD/badging.txt"
grep -E "^(package|sdkVersion|targetSdkVersion|uses-permission|launchable-activity|native-code)" "$BUILD/badging.txt"

[ -n "${ONNXRUNTIME_AAR:-}" ] || echo "without ONNX Runtime: set ONNXRUNTIME_AAR for an app that answers"
echo "$APK, $(stat -c %s "$APK") bytes"

#!/bin/sh
# tests/mac/run.sh BUNDLE: what only a Mac can tell, step by step; nobody has run it yet. See README.md beside this.
#
# BUNDLE is a folder that `tools/start` made on Linux after `tools/mac`. It is copied before anything is started.
set -u
bundle=${1:?usage: tests/mac/run.sh BUNDLE}
here=$(cd "$(dirname "$0")/../.." && pwd)
[ "$(uname -sm)" = "Darwin arm64" ] || { echo "this is for a Mac with Apple silicon" >&2; exit 6; }
work=$here/.cache/mac-run
chmod -R u+w "$work" 2>/dev/null
rm -rf "$work"
mkdir -p "$work"
failed=0
image=

step() { printf '\n== %s\n   expected: %s\n' "$1" "$2"; }
verdict() { if [ "$1" = 0 ]; then echo "   PASS"; else echo "   FAIL: $2"; failed=$((failed + 1)); fi; }
leave() { [ -z "$image" ] || hdiutil detach -force "$work/volume" >/dev/null 2>&1; }
trap leave EXIT

step "0. this machine" "macOS 14.0 or later, on Apple silicon"
sw_vers; sysctl -n machdep.cpu.brand_string hw.memsize
[ "$(sw_vers -productVersion | cut -d. -f1)" -ge 14 ]; verdict $? "macOS is too old"

step "1. unpack" "a copy elsewhere, under a name with spaces, without quarantine"
drive="$work/My Tiles drive"
cp -R "$bundle" "$drive"; verdict $? "it can't be copied"
bin=$drive/bin/macos-arm64
for file in tiles libmlx.dylib mlx.metallib LICENSE-MLX; do
  [ -f "$bin/$file" ]; verdict $? "bin/macos-arm64/$file is missing"
done
xattr -r "$drive" | grep -q com.apple.quarantine && echo "   note: it is quarantined; xattr -dr com.apple.quarantine removes that"

step "2. signatures" "valid on disk, satisfies its Designated Requirement; Signature=adhoc"
codesign --verify --verbose=4 "$bin/tiles"; verdict $? "the program's signature is refused"
codesign --verify --verbose=4 "$bin/libmlx.dylib"; verdict $? "the library's signature is refused"
codesign --display --verbose=2 "$bin/tiles" 2>&1 | grep -E 'Identifier|Signature|flags'
spctl --assess --type execute "$bin/tiles"; echo "   note: 'rejected' is expected of an ad-hoc signature"

step "3. libraries" "only /usr/lib, /System/Library/Frameworks and @rpath/libmlx.dylib; the only rpath is @executable_path; minos 14.0"
if command -v otool >/dev/null 2>&1; then
  otool -L "$bin/tiles"
  otool -l "$bin/tiles" | grep -A4 -E 'LC_RPATH|LC_BUILD_VERSION'
  otool -L "$bin/tiles" | tail -n +2 | grep -vE '^[[:space:]]+(/usr/lib/|/System/Library/Frameworks/|@rpath/libmlx.dylib)' && verdict 1 "a strange library"
else
  echo "   skipped: otool comes with Apple's command line tools"
fi

step "4. every name is found" "no 'symbol not found': the names of tools/mac-cross/stubs.txt are macOS's"
DYLD_PRINT_BINDINGS=1 DYLD_BIND_AT_LAUNCH=1 "$bin/tiles" --version > "$work/bindings" 2>&1
verdict $? "the program doesn't start: see $work/bindings"
grep -iE 'symbol not found|library not loaded' "$work/bindings" && verdict 1 "a name or library is missing"
grep -c 'libmlx' "$work/bindings"

step "5. the bundle is as sealed" "every byte, exit code 0"
"$drive/tiles" bundle verify --full; verdict $? "it isn't as sealed"
"$drive/tiles" doctor; verdict $? "doctor finds something"

step "6. a double click" "the launcher starts the same program"
sh "$drive/Tiles.command" --version; verdict $? "Tiles.command doesn't start it"

printf 'a passphrase for tests only, number 7319\n' > "$work/passphrase"
ask() { "$1/tiles" --no-input --passphrase-file "$work/passphrase" run -p "What is the capital of France? One word." --set temperature=0 --seed 1 --stats "$2" "$3"; }
step "7. an identity on the drive" "it can be made without a terminal; the answers of the next steps are kept in it"
"$drive/tiles" --no-input --passphrase-file "$work/passphrase" account create tester --no-recovery
verdict $? "no identity"
for engine in mlx cpu; do
  step "7. an answer over $engine" "the answer names Paris; for mlx tokens/s far above the cpu's, and the GPU at work in Activity Monitor"
  ask "$drive" --engine "$engine" > "$work/$engine" 2> "$work/$engine.stats"; verdict $? "no answer: $(tail -3 "$work/$engine.stats")"
  cat "$work/$engine" "$work/$engine.stats"
  grep -qi paris "$work/$engine"; verdict $? "another answer"
done
step "8. MLX's kernels" "without mlx.metallib the mlx engine says what is missing, and nothing crashes (exit code below 128)"
cp -R "$drive" "$work/broken"; rm "$work/broken/bin/macos-arm64/mlx.metallib"
ask "$work/broken" --engine mlx; code=$?
[ "$code" -gt 0 ] && [ "$code" -lt 128 ]; verdict $? "exit code $code"

step "9. without network" "an answer, in a sandbox that allows no network"
sandbox-exec -p '(version 1)(allow default)(deny network*)' "$drive/tiles" --no-input --passphrase-file "$work/passphrase" run -p "Say yes." ; verdict $? "no answer in the sandbox"
step "10. writes nothing elsewhere" "an answer, in a sandbox that allows writing to the drive and the terminal alone"
sandbox-exec -p "(version 1)(allow default)(deny file-write*)(allow file-write* (subpath \"$drive\") (subpath \"/dev\"))" \
  "$drive/tiles" --no-input --passphrase-file "$work/passphrase" run -p "Say yes." ; verdict $? "it needs to write elsewhere (Metal's cache of kernels is a candidate: say where)"

step "11. exFAT" "the bundle runs from an exFAT volume, whose files all are executable there"
hdiutil create -quiet -size 1g -fs ExFAT -volname TILESTEST "$work/drive.dmg" &&
  mkdir -p "$work/volume" && hdiutil attach -quiet -nobrowse -mountpoint "$work/volume" "$work/drive.dmg" && image=1
verdict $? "no image"
if [ -n "$image" ]; then
  cp -R "$drive" "$work/volume/Tiles"; verdict $? "it can't be copied"
  codesign --verify "$work/volume/Tiles/bin/macos-arm64/tiles"; verdict $? "the signature is lost on exFAT"
  ask "$work/volume/Tiles" --engine mlx; verdict $? "no answer from exFAT"
  step "12. pulled out" "the volume is torn away during an answer; afterwards the bundle is as sealed and earlier sessions are there"
  "$work/volume/Tiles/tiles" --no-input --passphrase-file "$work/passphrase" run -p "Count to one thousand." >/dev/null 2>&1 &
  running=$!
  sleep 3
  hdiutil detach -quiet -force "$work/volume"; image=
  wait "$running"; echo "   the program ended with $? (an error, no crash report, is expected)"
  hdiutil attach -quiet -nobrowse -mountpoint "$work/volume" "$work/drive.dmg" && image=1
  verdict $? "the volume is broken"
  "$work/volume/Tiles/tiles" bundle verify --full; verdict $? "the bundle is damaged"
  "$work/volume/Tiles/tiles" --no-input --passphrase-file "$work/passphrase" session list; verdict $? "the sessions can't be read"
fi

step "13. goldens over Metal" "the numbers of mlx-lm, in every precision, with the MLX that cargo builds here"
if command -v cargo >/dev/null 2>&1 && command -v cmake >/dev/null 2>&1 && xcrun --find metal >/dev/null 2>&1; then
  (cd "$here" && cargo test --locked --test it goldens && cargo test --locked --lib mlx); verdict $? "other numbers"
else
  echo "   skipped: needs the Rust toolchain, cmake and Xcode's Metal compiler"
fi

step "14. what the person sees" "pulled at the prompt: an error that says to plug the drive in again, in under 2 s, no crash report"
reports=$HOME/Library/Logs/DiagnosticReports
reports_before=$(ls "$reports" 2>/dev/null | grep -c '^tiles')
if [ -n "$image" ] && command -v expect >/dev/null 2>&1; then
  expect "$here/tests/mac/pulled.exp" "$work/volume/Tiles/tiles" "$work/passphrase" "$work/volume" "$work/drive.dmg"; verdict $? "see above"
  image=
  hdiutil attach -quiet -nobrowse -mountpoint "$work/volume" "$work/drive.dmg" && image=1
  "$work/volume/Tiles/tiles" --no-input --passphrase-file "$work/passphrase" session search "kept before the pull" | grep -q "kept"
  verdict $? "what was answered before the pull is lost"
else
  echo "   skipped: no image, or no expect(1)"
fi
[ "$(ls "$reports" 2>/dev/null | grep -c '^tiles')" = "$reports_before" ]; verdict $? "a crash report was written: it stays on the Mac, and says when Tiles ran"

if [ -n "$image" ]; then
  step "15. power cut" "20 times torn away while it chats; each time what was answered is there, and the key opens"
  answered=0; lost=0
  for round in $(seq 1 20); do
    ( n=0; while "$work/volume/Tiles/tiles" --no-input --passphrase-file "$work/passphrase" run -p "round $round question $n" \
        --set num_predict=8 >/dev/null 2>&1; do echo "round $round question $n" >> "$work/answered"; n=$((n + 1)); done ) &
    running=$!
    sleep "$((round % 5 + 2)).$((round * 7 % 10))"
    hdiutil detach -quiet -force "$work/volume"; wait "$running"
    hdiutil attach -quiet -nobrowse -mountpoint "$work/volume" "$work/drive.dmg" || { verdict 1 "the volume is broken"; break; }
    "$work/volume/Tiles/tiles" --no-input --passphrase-file "$work/passphrase" session export --format json > "$work/kept" 2> "$work/kept.errors" ||
      { lost=$((lost + 1)); cat "$work/kept.errors"; }
    while read -r question; do
      answered=$((answered + 1)); grep -qF "\"$question\"" "$work/kept" || { lost=$((lost + 1)); echo "   lost: $question"; }
    done < "$work/answered"; : > "$work/answered"
  done
  echo "   $answered answered, $lost lost (detach -force writes back what the system holds: it is milder than a pulled stick)"
  [ "$lost" = 0 ] && [ "$answered" -gt 0 ]; verdict $? "answered messages were lost"

  step "16. write-protected" "an answer, one warning, nothing saved, the same image afterwards"
  hdiutil detach -quiet -force "$work/volume"; image=
  before=$(shasum -a 256 "$work/drive.dmg")
  hdiutil attach -quiet -nobrowse -readonly -mountpoint "$work/volume" "$work/drive.dmg" && image=1
  ask "$work/volume/Tiles" --engine cpu > "$work/protected" 2> "$work/protected.errors"; verdict $? "no answer"
  [ "$(grep -c write-protected "$work/protected.errors")" = 1 ]; verdict $? "it isn't said once"
  hdiutil detach -quiet -force "$work/volume"; image=
  [ "$before" = "$(shasum -a 256 "$work/drive.dmg")" ]; verdict $? "something was written"
  hdiutil attach -quiet -nobrowse -mountpoint "$work/volume" "$work/drive.dmg" && image=1

  step "17. full" "an import is refused before it begins; a conversation says that there is no space; what was kept is there"
  mkfile -n "$(df -k "$work/volume" | awk 'NR==2 {print $4 - 512}')k" "$work/volume/filler"
  "$work/volume/Tiles/tiles" --no-input --passphrase-file "$work/passphrase" model export smollm2-135m "$work/volume/too-large.tar" 2> "$work/full"
  [ $? != 0 ] && grep -q space "$work/full"; verdict $? "$(cat "$work/full")"
  rm -f "$work/volume/filler" "$work/volume/too-large.tar"
  "$work/volume/Tiles/tiles" --no-input --passphrase-file "$work/passphrase" session list >/dev/null; verdict $? "the sessions can't be read"
fi

step "18. every command writes nowhere else" "each in a sandbox without network that allows writing to the drive alone; a control that writes to HOME is stopped"
cage="(version 1)(allow default)(deny network*)(deny file-write*)(allow file-write* (subpath \"$drive\") (subpath \"/dev\"))"
sandbox-exec -p "$cage" sh -c 'echo leak > "$HOME/tiles-leak"' 2>/dev/null; [ ! -e "$HOME/tiles-leak" ]; verdict $? "the sandbox stops nothing"
rm -f "$HOME/tiles-leak"
for line in "account" "bundle info" "bundle verify" "model list" "model show smollm2-135m" "session list" "session search Paris" \
  "session export --format json" "key status" "doctor" "privacy" "config show" "completions zsh" "man"; do
  # shellcheck disable=SC2086
  sandbox-exec -p "$cage" "$drive/tiles" --no-input --passphrase-file "$work/passphrase" $line >/dev/null 2> "$work/caged"
  verdict $? "tiles $line: $(tail -2 "$work/caged")"
done

step "19. nothing of HOME is looked at" "no path under HOME among the files that an answer opens (fs_usage needs sudo: run by hand what this prints)"
echo "   sudo fs_usage -w -f pathname tiles | grep \"$HOME\"     # beside: $drive/tiles run -p hi"

step "20. quarantine" "with the attribute of a browser's download macOS refuses the first start, as README says; without it, it starts"
cp -R "$drive" "$work/downloaded"
xattr -w com.apple.quarantine "0083;00000000;Safari;00000000-0000-0000-0000-000000000000" "$work/downloaded/bin/macos-arm64/tiles"
spctl --assess --type execute "$work/downloaded/bin/macos-arm64/tiles" 2>&1 | sed 's/^/   /'
xattr -dr com.apple.quarantine "$work/downloaded"
"$work/downloaded/tiles" --version; verdict $? "it doesn't start without the attribute either"

step "21. a name in two forms" "a folder whose name a Mac writes with combining marks (NFD) and one written in single characters (NFC)"
for name in "$(printf 'Stick u\314\210')" "$(printf 'Stick \303\274 2')"; do
  cp -R "$drive" "$work/$name"
  (cd / && ask "$work/$name" --engine cpu >/dev/null); verdict $? "no answer from $name"
  env -i "$work/$name/tiles" --no-input --passphrase-file "$work/passphrase" session list >/dev/null; verdict $? "no HOME, no answer"
  rm -rf "${work:?}/$name"; [ ! -e "$work/$name" ]; verdict $? "something is left"
done

step "22. the Keychain" "an installed Tiles answers without a passphrase; locked, it says so and writes nothing; an item that is gone is put back; nothing of it is left"
# A keychain of this test's own, so that nobody's login keychain is touched; the default is put back at the end.
before_keychain=$(security default-keychain | tr -d ' "')
keychain=$work/test.keychain-db
security create-keychain -p tests "$keychain" && security unlock-keychain -p tests "$keychain" && security default-keychain -s "$keychain"
security list-keychains -d user -s "$keychain" "$before_keychain"
mkdir -p "$work/installed/bin" "$work/home"
cp "$bin/tiles" "$bin/libmlx.dylib" "$bin/mlx.metallib" "$work/installed/bin/"
installed() { HOME="$work/home" "$work/installed/bin/tiles" --no-input "$@"; }
installed --installed --passphrase-file "$work/passphrase" account create tester --no-recovery; verdict $? "no identity"
security find-generic-password -s Tiles "$keychain" >/dev/null; verdict $? "the Keychain has no item"
installed account; verdict $? "the Keychain doesn't open the keys (a dialogue may ask: allow it)"
installed key status | grep -q 'Keychain.*has the keys'; verdict $? "key status doesn't say so"
shasum -a 256 "$work/home/Library/Application Support/Tiles/data/"key.? > "$work/keys.before"
security lock-keychain "$keychain"
installed account 2> "$work/locked"; [ $? = 3 ]; verdict $? "locked, it isn't exit code 3: $(cat "$work/locked")"
installed --passphrase-file "$work/passphrase" account; verdict $? "the passphrase doesn't open the keys"
shasum -a 256 -c "$work/keys.before"; verdict $? "the key file was changed"
security unlock-keychain -p tests "$keychain"
security delete-generic-password -s Tiles "$keychain" >/dev/null
installed account; [ $? = 3 ]; verdict $? "without an item it doesn't ask for the passphrase"
installed --passphrase-file "$work/passphrase" key keychain on && installed account; verdict $? "it can't be put back"
installed key keychain off; ! security find-generic-password -s Tiles "$keychain" >/dev/null 2>&1; verdict $? "the item is left"
security default-keychain -s "$before_keychain"; security list-keychains -d user -s "$before_keychain"; security delete-keychain "$keychain"

step "23. a device that lies" "not possible with hdiutil; tested on Linux"

printf '\n%s checks failed\n' "$failed"
[ "$failed" = 0 ]

#!/bin/bash
# Makes the tables again: make.sh [labels|new-files|exec|noxattr]...   (root, for a loop mount; README.md says what it takes)
#   BOOT     a program that boots the kernel under qemu and runs a script in it, see README.md
#   MODULES  the folder into which that kernel's Debian package was unpacked (dpkg-deb -x), for its modules
#   WORK     a scratch folder (made if it is not named)
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd); S=$HERE/scenarios
: "${BOOT:?}" "${MODULES:?}" "${WORK:=$(mktemp -d)}"
UUID=11111111-2222-3333-4444-555555555555
mkdir -p "$WORK/in"
gcc -O2 -static -Wall -Wextra -o "$WORK/in/steps" "$S/steps.c"
cp "$S/policy" "$S/guest.sh" "$WORK/in/"
for m in md4 rmd160 wp512 streebog_generic nls_cp437 nls_ascii nls_iso8859-1 fat vfat loop; do
  xz -dc "$(find "$MODULES" -name "$m.ko.xz" | grep .)" > "$WORK/in/$m.ko"; done
python3 "$S/labels.py" > "$WORK/in/labels.in"
for n in new-files exec noxattr; do python3 "$S/expand.py" < "$S/$n.txt" > "$WORK/in/$n.in"; done

image() { # NAME: an ext4 image with the files and labels; this kernel needs no IMA, so every label can be set
  local m=$WORK/mnt img=$WORK/$1.img; rm -f "$img"; truncate -s 96M "$img"; mkdir -p "$m"
  /sbin/mkfs.ext4 -q -F -b 4096 -N 16384 -U $UUID -E hash_seed=$UUID,lazy_itable_init=0,lazy_journal_init=0 "$img"
  mount -o loop "$img" "$m"; "$WORK/in/steps" prepare "$m" < "$WORK/in/$1.in" || { umount "$m"; exit 1; }; umount "$m"; }
boot() { # NAME MODE KERNEL HASH FILESYSTEM
  local o=$WORK/out/$1-$3-$4-$2; rm -rf "$o"; mkdir -p "$o"; cp --sparse=always "$WORK/$1.img" "$WORK/run.img"
  "$BOOT" "ima_appraise=$2 ima_hash=$4 log_buf_len=16M" "$WORK/in" "$o" "$WORK/run.img" "$S/guest.sh" "$1.in" "$3" "$5" ||
    { cat "$o/stdout" >&2; exit 1; }; rm -f "$WORK/run.img"; }

for n in "${@:-labels new-files exec noxattr}"; do for n in $n; do
  fs=ext4; [ $n != noxattr ] || fs=vfat
  [ $fs = vfat ] && { truncate -s 16M "$WORK/$n.img"; /sbin/mkfs.ext4 -q -F "$WORK/$n.img"; } || image $n
  runs=()
  for setting in stock,sha256 modules,sha256 keyring,sha256 stock,sha512; do
    [ $n = labels ] || [ $setting = stock,sha256 ] || continue
    for mode in enforce log fix; do
      k=${setting%,*} h=${setting#*,}; boot $n $mode $k $h $fs
      if [ $n = labels ]; then runs+=("$setting,$mode:$WORK/out/$n-$k-$h-$mode"); else runs+=("$mode:$WORK/out/$n-$k-$h-$mode"); fi
    done
  done
  python3 "$S/collect.py" "$WORK/in/$n.in" "${runs[@]}" > "$WORK/$n.tsv.new"; mv "$WORK/$n.tsv.new" "$HERE/$n.tsv"
done; done

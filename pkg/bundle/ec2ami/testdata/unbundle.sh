#!/bin/sh
# Reads a bundle in EC2's format with nothing of kami's: what ec2-unbundle did, by
# hand. unbundle.sh MANIFEST KEY CERT WHOSE IMAGE, where WHOSE is user or ec2 and CERT
# is always the user's.
set -eu
manifest=$1 key=$2 cert=$3 whose=$4 image=$5
from=$(dirname "$manifest")
work=$image.work
mkdir "$work"
get() { xmllint --xpath "string(/manifest/$1)" "$manifest"; }
unhex() { sed 's/../\\x&/g' | xargs -0 printf %b; }
sum() { openssl sha1 "$@" | sed 's/.*= *//'; }
fail() { echo "$1" >&2; exit 1; }
[ "$(get version)" = 2007-10-10 ] || fail version
# The signature is over the two elements as they are in the file.
grep -o '<machine_configuration>.*</machine_configuration>' "$manifest" | tr -d '\n' >"$work/signed"
grep -o '<image>.*</image>' "$manifest" | tr -d '\n' >>"$work/signed"
get signature | tr -d '\n' | unhex >"$work/signature"
openssl x509 -in "$cert" -pubkey -noout >"$work/public"
openssl dgst -sha1 -verify "$work/public" -signature "$work/signature" "$work/signed" >&2
open() { get "image/${whose}_encrypted_$1" | tr -d '\n' | unhex | openssl pkeyutl -decrypt -pkeyopt rsa_padding_mode:pkcs1 -inkey "$key"; }
k=$(open key)
iv=$(open iv)
count=$(get 'image/parts/@count')
i=1
while [ "$i" -le "$count" ]; do
  part=$(get "image/parts/part[$i]/filename")
  [ "$(get "image/parts/part[$i]/@index")" = $((i - 1)) ] || fail "index of $part"
  [ "$(sum "$from/$part")" = "$(get "image/parts/part[$i]/digest")" ] || fail "digest of $part"
  cat "$from/$part" >>"$work/enc"
  i=$((i + 1))
done
[ "$(stat -c %s "$work/enc")" = "$(get image/bundled_size)" ] || fail bundled_size
openssl enc -d -aes-128-cbc -K "$k" -iv "$iv" -in "$work/enc" | gunzip -c >"$work/tar"
[ "$(sum "$work/tar")" = "$(get image/digest)" ] || fail digest
[ "$(tar -tf "$work/tar")" = "$(get image/name)" ] || fail members
tar -xSf "$work/tar" -C "$work"
mv "$work/$(get image/name)" "$image"
[ "$(stat -c %s "$image")" = "$(get image/size)" ] || fail size
rm -r "$work"

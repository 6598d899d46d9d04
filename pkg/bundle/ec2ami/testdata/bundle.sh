#!/bin/sh
# Makes a bundle in EC2's format with nothing of kami's: what ec2-bundle-image did,
# by hand. bundle.sh IMAGE PREFIX FOLDER KEY CERT EC2CERT MANIFEST-SPELLING
set -eu
image=$1 prefix=$2 to=$3 key=$4 cert=$5 ec2cert=$6 spelling=$7
mkdir -p "$to"
sum() { openssl sha1 "$@" | sed 's/.*= *//'; }
hex() { od -An -v -tx1 | tr -d ' \n'; }
k=$(openssl rand -hex 16)
iv=$(openssl rand -hex 16)
size=$(stat -c %s "$image")
ln -s "$(realpath "$image")" "$to/$prefix"
tar -chSf "$to/tar" --owner 0 --group 0 -C "$to" "$prefix"
rm "$to/$prefix"
digest=$(sum "$to/tar")
gzip -9 <"$to/tar" | openssl enc -e -aes-128-cbc -K "$k" -iv "$iv" >"$to/enc"
rm "$to/tar"
bundled=$(stat -c %s "$to/enc")
split -b 10485760 -d -a 2 "$to/enc" "$to/$prefix.part."
rm "$to/enc"
seal() { printf %s "$1" | openssl pkeyutl -encrypt -pkeyopt rsa_padding_mode:pkcs1 -certin -inkey "$2" | hex; }
if [ "$spelling" = new ]; then
  mapping='<block_device_mappings><block_device_mapping><device>sda1</device><virtual>ami</virtual></block_device_mapping></block_device_mappings><productcodes><product_code>774F4FF8</product_code></productcodes>'
else
  mapping='<block_device_mapping><mapping><virtual>ami</virtual><device>sda1</device></mapping></block_device_mapping><product_codes><product_code>774F4FF8</product_code></product_codes>'
fi
count=0
parts=
for part in "$to/$prefix".part.*; do
  parts="$parts<part index='$count'><filename>$(basename "$part")</filename><digest algorithm='SHA1'>$(sum "$part")</digest></part>"
  count=$((count + 1))
done
machine="<machine_configuration><architecture>i386</architecture>$mapping<kernel_id>aki-a71cf9ce</kernel_id><ramdisk_id>ari-a51cf9cc</ramdisk_id></machine_configuration>"
img="<image><name>$prefix</name><user>123456789012</user><type>machine</type><ancestry><ancestor_ami_id>ami-61a54008</ancestor_ami_id></ancestry><digest algorithm='SHA1'>$digest</digest><size>$size</size><bundled_size>$bundled</bundled_size><ec2_encrypted_key algorithm='AES-128-CBC'>$(seal "$k" "$ec2cert")</ec2_encrypted_key><user_encrypted_key algorithm='AES-128-CBC'>$(seal "$k" "$cert")</user_encrypted_key><ec2_encrypted_iv>$(seal "$iv" "$ec2cert")</ec2_encrypted_iv><user_encrypted_iv>$(seal "$iv" "$cert")</user_encrypted_iv><parts count='$count'>$parts</parts></image>"
signature=$(printf %s "$machine$img" | openssl dgst -sha1 -sign "$key" | hex)
printf %s "<?xml version='1.0'?><manifest><version>2007-10-10</version><bundler><name>ec2-ami-tools</name><version>1.3</version><release>26357</release></bundler>$machine$img<signature>$signature</signature></manifest>" >"$to/$prefix.manifest.xml"

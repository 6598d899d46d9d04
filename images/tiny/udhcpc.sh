#!/bin/sh
# Called by udhcpc with what the network offers.
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
for r in $router; do
	ip route add default via "$r" dev "$interface"
done
: >/etc/resolv.conf
for d in $dns; do
	echo "nameserver $d" >>/etc/resolv.conf
done
: >/run/online
exit 0

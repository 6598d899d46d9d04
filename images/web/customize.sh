#!/bin/sh
# Runs as root in the guest, once its packages and files are in place.
set -eu
rm -f /var/www/html/index.nginx-debian.html
nginx -t
systemctl enable nginx

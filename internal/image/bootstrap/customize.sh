#!/bin/sh
# Runs on this machine after the packages are installed. $1 is the root of the new
# system, KILN_SOURCES the content of its package sources, KILN_SOURCES_NAME their file.
set -eu
root=$1

# Package sources and the behaviour that images have: packages are not kept after
# installation, indexes stay compressed, no translations.
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap
printf '%s' "$KILN_SOURCES" > "$root/etc/apt/sources.list.d/$KILN_SOURCES_NAME"
cat > "$root"/etc/apt/apt.conf.d/docker-clean <<'CONF'
APT::Keep-Downloaded-Packages "false";
Binary::apt::APT::Keep-Downloaded-Packages "false";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
CONF
cat > "$root"/etc/apt/apt.conf.d/docker-indexes <<'CONF'
Acquire::GzipIndexes "true";
Acquire::Languages "none";
APT::AutoRemove::SuggestsImportant "false";
CONF

# Nobody starts services in an image that is being built.
printf '#!/bin/sh\nexit 101\n' > "$root"/usr/sbin/policy-rc.d
chmod 755 "$root"/usr/sbin/policy-rc.d

# What belongs to this machine, to this run, or can be made again.
rm -f "$root"/etc/resolv.conf "$root"/etc/hostname "$root"/etc/machine-id "$root"/var/lib/dbus/machine-id
rm -f "$root"/etc/.pwd.lock "$root"/etc/passwd- "$root"/etc/group- "$root"/etc/shadow- "$root"/etc/gshadow- "$root"/etc/subuid- "$root"/etc/subgid-
rm -f "$root"/var/lib/dpkg/*-old "$root"/var/cache/debconf/*-old "$root"/var/cache/ldconfig/aux-cache
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
# mmdebstrap's own configuration of apt stays until mmdebstrap removes it: without it the
# next apt-get would work on this machine instead of the new system.
find "$root"/tmp "$root"/var/tmp -mindepth 1 ! -path "$MMDEBSTRAP_APT_CONFIG" -delete
mkdir -p "$root"/var/lib/apt/lists/partial "$root"/var/cache/apt/archives/partial
find "$root"/var/log -type f -delete

# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A private apt: Debian's package resolver with its own folder, indexes and empty package status, so that
# nothing is installed, nothing of the machine's own apt state is touched, and no root is needed.
#
# The mirror is the machine's own: the repositories it has configured, asked for other suites. Sourced by `prepare`.

readonly SUITE=trixie
readonly BACKPORTS=trixie-backports
# Newer releases of the keyring package prefer the other suffix.
readonly KEYRINGS=/usr/share/keyrings/debian-archive-keyring
KEYRING=$KEYRINGS.gpg
[ -r "$KEYRING" ] || KEYRING=$KEYRINGS.pgp

# Base URIs from which the machine takes a Debian release, most likely first. The security archive and third-party
# repositories have suites of other shapes and fall out; a repository that passes but is not Debian's fails its signature.
debian_mirrors() {
    # Not `apt-get indextargets`, which knows nothing before the machine's first update.
    apt-get update --print-uris 2>/dev/null |
        sed -nE "s,^'(.+)/dists/[a-z]+(-updates|-backports)?/InRelease' .*,\\1,p" | awk '!seen[$0]++'
}

# The machine's transport settings (proxies, certificates, clock tolerance); its indexes and hooks are not ours.
transport_settings() {
    apt-config dump 2>/dev/null |
        grep -E '^Acquire::(http|https|ftp|tor|Check-Valid-Until|Check-Date|ForceIPv[46]|Retries|AllowRedirect)(::[A-Za-z0-9_.:/-]+)? "..*";$'
}

# apt_open DIR: set up a private apt in DIR and fetch its indexes from the first mirror that has our suites.
apt_open() {
    local dir=$1 mirror tool
    for tool in apt-get apt-cache apt-config dpkg-deb; do
        command -v "$tool" >/dev/null || unavailable "this machine has no $tool (the packages come from a Debian mirror)"
    done
    [ -r "$KEYRING" ] || unavailable "no Debian archive keyring at $KEYRINGS.gpg"
    # Asked now, before APT_CONFIG hides the machine's sources.
    local mirrors
    mirrors=$(debian_mirrors)
    mkdir -p "$dir"/{etc/sources.d,etc/preferences.d,etc/trusted.d,state/lists/partial,cache/archives/partial}
    : >"$dir/status"
    {
        transport_settings || true
        cat <<CONF
Dir "$dir";
Dir::Etc "$dir/etc";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "$dir/etc/sources.list";
Dir::Etc::sourceparts "$dir/etc/sources.d";
Dir::Etc::preferencesparts "$dir/etc/preferences.d";
Dir::Etc::trustedparts "$dir/etc/trusted.d";
Dir::State "$dir/state";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; }
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Get::List-Cleanup "false";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true";
CONF
    } >"$dir/apt.conf"
    export APT_CONFIG=$dir/apt.conf

    [ -n "$mirrors" ] || unavailable "this machine's apt has no Debian repository configured"
    for mirror in $mirrors; do
        printf 'deb [signed-by=%s] %s %s main\n' "$KEYRING" "$mirror" "$SUITE" "$KEYRING" "$mirror" "$BACKPORTS" \
            >"$dir/etc/sources.list"
        if apt-get update -qq -o APT::Update::Error-Mode=any >"$dir/update.log" 2>&1; then
            : >"$dir/ready"
            return 0
        fi
        say "a configured mirror does not serve $SUITE and $BACKPORTS: $(grep -m1 -E '^[EW]:' "$dir/update.log" || true)"
    done
    unavailable "no configured Debian mirror can be reached or serves $SUITE and $BACKPORTS"
}

# apt_closure PACKAGE...: names with versions (name=version), the whole dependency closure of PACKAGE...
apt_closure() {
    apt-get install --simulate -qq "$@" | awk '$1 == "Inst" { v = $3; sub(/^\(/, "", v); print $2 "=" v }'
}

# apt_fetch DIR NAME=VERSION...: download these packages (and nothing else) into DIR.
apt_fetch() {
    local dir=$1
    shift
    mkdir -p "$dir"
    (cd "$dir" && apt-get download -qq "$@")
}

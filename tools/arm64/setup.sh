# Steps of tools/setup.sh that make an arm64 machine to emulate: a disk and a kernel out of Debian's
# arm64 packages, and a llama.cpp built for it. Nothing of arm64 runs here: packages are unpacked,
# not installed.

ARM64=$CACHE/arm64
ARM64_HOST_PACKAGES="qemu-system-arm g++-aarch64-linux-gnu gcc-aarch64-linux-gnu libc6-dev-arm64-cross
  cmake ninja-build kmod cpio e2fsprogs"
ARM64_PACKAGES="linux-image-arm64 busybox-static bash coreutils util-linux python3 python3-bpfcc libgomp1
  libstdc++6"
# Reports are made outside; a recorder needs these.
ARM64_PYTHON="click rich numpy pyelftools capstone"
ARM64_MODULES="virtio_pci virtio_blk ext4 9pnet_virtio 9p"
ARM64_LLAMA_TARGETS="llama-completion"

# Packages of another architecture, from where this machine gets its own, in folders of their own.
arm64_apt() {
    apt-get -q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User=root \
        -o Dir::State="$ARM64/apt/state" -o Dir::State::status="$ARM64/apt/status" \
        -o Dir::Cache="$ARM64/apt/cache" -o Dir::Etc::sourcelist="$ARM64/apt/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null "$@"
}

arm64_fetch() {
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$ARM64"/apt/{state/lists/partial,cache/archives/partial}
    rm -f "$ARM64"/apt/cache/archives/*.deb
    : >"$ARM64/apt/status"
    apt-get indextargets --format '$(ORIGIN) $(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v keys=$keys '$1 == "Debian" { print "deb [arch=arm64 signed-by=" keys "]", $2, $3, $4 }' |
        sort -u >"$ARM64/apt/sources.list"
    [ -s "$ARM64/apt/sources.list" ] || { echo "apt knows no Debian"; return 1; }
    arm64_apt update
    arm64_apt install -y --no-install-recommends --download-only $ARM64_PACKAGES
}

arm64_unpack() { # ROOT: a file system whose packages are unpacked
    local package root=$1
    rm -rf "$root"
    mkdir -p "$root"/usr/{bin,sbin,lib} "$root"/mnt/{checkout,job} "$root"/opt/python
    ln -s usr/bin usr/sbin usr/lib "$root"
    for package in "$ARM64"/apt/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --keep-directory-symlink
    done
    cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd" 2>/dev/null ||
        echo "root:x:0:0:root:/root:/bin/bash" >"$root/etc/passwd"
    cp "$ROOT/tools/arm64/start" "$root/start"
}

arm64_python() { # ROOT: wheels for the machine's Python, and byte code where ours can make it
    local version platform platforms=()
    version=$(basename "$(ls -d "$1"/usr/lib/python3.[0-9]*)")
    version=${version#python}
    for platform in manylinux2014 manylinux_2_17 manylinux_2_28 manylinux_2_34; do
        platforms+=(--platform "${platform}_aarch64")
    done
    "$PY" -m pip install --target "$1/opt/python" --only-binary=:all: --implementation cp \
        --python-version "$version" "${platforms[@]}" $ARM64_PYTHON
    if [ "$("$PY" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$version" ]; then
        # Files that are templates or of an older Python do not compile; nobody imports them.
        "$PY" -m compileall -q -s "$1" "$1/opt/python" "$1/usr/lib/python$version" \
            "$1/usr/lib/python3/dist-packages/bcc" || true
    fi
}

arm64_boot_files() { # ROOT: kernel, modules that the disk needs, both taken out of the root
    local root=$1 kernel work=$ARM64/initial module
    kernel=$(basename "$(ls -d "$root"/lib/modules/*)")
    cp "$root/boot/vmlinuz-$kernel" "$ARM64/vmlinuz"
    rm -rf "$work"
    mkdir -p "$work"/{bin,dev,disk,lib}
    cp "$root/bin/busybox" "$work/bin/"
    install -m 755 "$ROOT/tools/arm64/init" "$work/init"
    depmod -b "$root" "$kernel"
    for module in $ARM64_MODULES; do modprobe -d "$root" -S "$kernel" --show-depends "$module"; done |
        awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$ARM64/modules"
    xargs cp -t "$work/lib" <"$ARM64/modules"
    sed 's,.*/,,' "$ARM64/modules" >"$work/modules"
    (cd "$work" && find . | cpio --quiet -o -H newc -R 0:0) >"$ARM64/initrd"
    rm -rf "$work" "$root"/boot/* "$root/lib/modules/$kernel/kernel" "$root"/usr/share/{doc,man,locale}
}

arm64_disk() {
    local root=$ARM64/root disk=$ARM64/disk
    arm64_unpack "$root"
    arm64_python "$root"
    arm64_boot_files "$root"
    rm -f "$disk"
    truncate -s 2G "$disk"
    mke2fs -q -t ext4 -O ^has_journal -d "$root" "$disk"
    rm -rf "$root"
}

step_arm64() {
    local key
    . /etc/os-release
    [ "$ID" = debian ] || die "the arm64 machine is made of Debian's packages, and this is $NAME" \
        "Run it on Debian 12."
    key=$(cat "$ROOT"/tools/arm64/{setup.sh,init,start} | sha256sum | cut -c 1-32)
    stamped arm64 "$key" && [ -f "$ARM64/disk" ] && return
    rm -f "$CACHE/stamps/arm64"
    need_packages $ARM64_HOST_PACKAGES
    mkdir -p "$ARM64"
    run arm64-fetch "Fetching Debian's arm64 packages (150 MB)" arm64_fetch
    run arm64-disk "Making the disk of an arm64 machine" arm64_disk
    stamp arm64 "$key"
}

step_arm64_llama() {
    local dir=$ARM64/llama.cpp source=$CACHE/llama.cpp-$LLAMA_VERSION/src key
    local flags="$LLAMA_FLAGS -DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod
      -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
      -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"
    key=$(echo $LLAMA_VERSION $flags $ARM64_LLAMA_TARGETS | sha256sum | cut -c 1-32)
    stamped arm64-llama "$key" && [ -x "$dir/bin/llama-completion" ] && return
    rm -f "$CACHE/stamps/arm64-llama"
    [ -d "$source" ] || download_source "$source"
    run arm64-llama-configure "Configuring llama.cpp for arm64" cmake -S "$source" -B "$dir" -G Ninja $flags
    run arm64-llama-build "Building llama.cpp for arm64 (5 to 10 minutes on 2 cores)" \
        ninja -C "$dir" $ARM64_LLAMA_TARGETS
    stamp arm64-llama "$key"
}

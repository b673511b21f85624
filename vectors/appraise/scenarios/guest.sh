# Runs in the guest: guest.sh SCENARIOS KERNEL(stock|modules|keyring) FILESYSTEM(ext4|vfat)
NAME=$1 KERNEL=$2 FS=$3; IMA=/sys/kernel/security/ima; ROOT=/scratch
load() { for m in "$@"; do insmod /in/$m.ko; done; }
[ $KERNEL != modules ] || load rmd160 wp512 streebog_generic md4
[ $KERNEL != keyring ] || keyctl newring _ima @u > /dev/null
if [ $FS = vfat ]; then
  load nls_cp437 nls_ascii nls_iso8859-1 fat vfat loop; ROOT=/m; mkdir $ROOT
  dd if=/dev/zero of=/vfat.img bs=1M count=16 2>/dev/null; mkdosfs /vfat.img > /dev/null; losetup /dev/loop0 /vfat.img
  mount -t vfat /dev/loop0 $ROOT; /in/steps prepare $ROOT < /in/$NAME
  umount $ROOT; mount -t vfat /dev/loop0 $ROOT   # fresh inodes: nothing remembered from the preparation
fi
cat /in/policy > $IMA/policy || exit 1
/in/steps run $ROOT < /in/$NAME > /out/steps; RC=$?
cat $IMA/ascii_runtime_measurements | wc -l > /out/measurements
sleep 1; dmesg | grep 'type=18' > /out/audit
uname -rv > /out/kernel
exit $RC

//! Every field of `vm.json` in words: what stands after "give" in an error.

/// Field (list elements are `[]`) and what it takes.
pub(super) const FIELDS: &[(&str, &str)] = &[
    ("", "an object with \"version\": 1, \"name\" and \"kernel\""),
    ("version", "1"),
    ("name", "a name of a-z, 0-9 and -, at most 63 long, like \"node0\""),
    ("vcpus", "a whole number from 1 to 254"),
    ("memory", "a size from \"16MiB\" to \"1024GiB\", a multiple of 4KiB"),
    ("cpu", "\"host\""),
    ("kernel", "an object like { \"image\": \"vmlinuz\", \"initrd\": \"initrd.img\", \"cmdline\": \"console=ttyS0\" }"),
    ("kernel.image", "the path of a bzImage or an ELF kernel"),
    ("kernel.initrd", "the path of an initial RAM disk, or leave it out"),
    ("kernel.cmdline", "the kernel's command line, at most 2047 bytes without control characters"),
    ("kernel.protocol", "\"auto\", \"linux\" or \"pvh\""),
    ("disks", "a list of disks like [ { \"id\": \"root\", \"path\": \"root.raw\" } ]"),
    ("disks[]", "an object like { \"id\": \"root\", \"path\": \"root.raw\" }"),
    ("disks[].id", "a name of a-z, 0-9 and -, at most 63 long, like \"root\""),
    ("disks[].path", "the path of a disk image or a block device"),
    ("disks[].format", "\"raw\" or \"qcow2\""),
    ("disks[].mode", "\"private\", \"direct\" or \"read-only\""),
    ("disks[].capture", "true or false"),
    ("nics", "a list of network cards like [ { \"id\": \"eth0\", \"uplink\": { \"tap\": \"tap0\" } } ]"),
    ("nics[]", "an object like { \"id\": \"eth0\", \"uplink\": { \"tap\": \"tap0\" } }"),
    ("nics[].id", "a name of a-z, 0-9 and -, at most 63 long, like \"eth0\""),
    ("nics[].mac", "a unicast MAC address like \"02:00:00:00:00:01\""),
    ("nics[].uplink", "{ \"tap\": NAME }, or \"network\" if `ckvmm network` starts the VM"),
    ("nics[].uplink.tap", "the name of a TAP interface, at most 15 bytes, like \"tap0\""),
    ("nics[].uplink.passt", "an object like { \"forward\": [ \"2222:22\" ] }"),
    ("nics[].uplink.passt.forward", "a list like [ \"2222:22\" ]"),
    ("nics[].uplink.passt.forward[]", "two port numbers like \"2222:22\""),
    ("serial", "\"stdio\", \"none\", { \"file\": PATH } or { \"socket\": PATH }"),
    ("serial.file", "the path of a file to append to"),
    ("serial.socket", "the path of a unix socket to listen on, at most 107 bytes"),
    ("stop_timeout", "a time like \"30s\" or \"2m\", at most \"24h\""),
    ("checkpoint", "an object like { \"dir\": \"checkpoints\" }"),
    ("checkpoint.dir", "the path of a directory for checkpoints"),
    ("checkpoint.mode", "\"auto\", \"protect\", \"fork\" or \"stop\""),
    ("checkpoint.every", "a time like \"60s\" or \"5m\", at least \"1s\" and at most \"24h\""),
    ("checkpoint.keep", "a whole number from 1 up"),
    ("checkpoint.stop_deadline", "a time like \"30s\" or \"2m\", at most \"24h\""),
];

/// What the field at `pattern` takes. Variants such as `serial.stdio` take what their parent takes.
pub(super) fn expected(pattern: &str) -> &'static str {
    let mut pattern = pattern;
    loop {
        if let Some((_, text)) = FIELDS.iter().find(|(name, _)| *name == pattern) {
            return text;
        }
        pattern = pattern.rfind(['.', '[']).map_or("", |at| &pattern[..at]);
    }
}

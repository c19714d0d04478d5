//! The option list of mount(8), as it stands in `/etc/fstab`: `rw,noauto,config=/etc/tmfs/node.toml`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{ArgAction, Command};
use nix::mount::MsFlags;

use crate::failure::usage;

/// A list, taken apart.
#[derive(PartialEq, Eq, Debug)]
pub struct Options {
    /// Arguments of `tmfs mount`: `--cache=through`.
    pub ours: Vec<OsString>,
    /// Flags of the mount for the kernel.
    pub flags: MsFlags,
    /// Change the mount that is there.
    pub remount: bool,
}

/// What says nothing to us: the defaults, what mount(8) and systemd read themselves, and what the kernel shows for a
/// mount of ours, which mount(8) hands back at a remount.
const IGNORED: [&str; 35] = [
    "",
    "defaults",
    "rw",
    "async",
    "noauto",
    "auto",
    "nofail",
    "_netdev",
    "_rnetdev",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "silent",
    "loud",
    "suid",
    "dev",
    "exec",
    "atime",
    "diratime",
    "norelatime",
    "nostrictatime",
    "default_permissions",
    "allow_other",
    "user_id",
    "group_id",
    "rootmode",
    "max_read",
    "comment",
    "helper",
    "uhelper",
];

/// What the kernel does by itself, for one mount.
const FLAGS: [(&str, MsFlags); 7] = [
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    ("noatime", MsFlags::MS_NOATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME),
    ("relatime", MsFlags::MS_RELATIME),
    ("strictatime", MsFlags::MS_STRICTATIME),
];

/// Options of `tmfs mount` that mean nothing when mount(8) asks.
const NOT_HERE: [&str; 3] = ["foreground", "help", "path"];

impl Options {
    /// Takes lists apart, of which a later word wins; `mount` is the definition of `tmfs mount`. Words that are not
    /// known are left out when `sloppy`.
    pub fn parse(lists: &[OsString], mount: &Command, sloppy: bool) -> anyhow::Result<Options> {
        let mut options = Options { ours: Vec::new(), flags: MsFlags::empty(), remount: false };
        for word in lists.iter().flat_map(|list| words(list.as_bytes())) {
            let (name, value) = match word.iter().position(|byte| *byte == b'=') {
                Some(at) => (&word[..at], Some(unquoted(&word[at + 1..]))),
                None => (&word[..], None),
            };
            let name = String::from_utf8_lossy(name).into_owned();
            match name.as_str() {
                "remount" => options.remount = true,
                "ro" => {
                    return Err(usage(
                        "ro: a program's data cannot be mounted read-only; its heights are, below @height",
                    ));
                }
                name if IGNORED.contains(&name) || name.starts_with("x-") || name.starts_with("X-") => {
                    options.flags -= undone(name);
                }
                name => match FLAGS.iter().find(|(known, _)| *known == name) {
                    Some((_, flag)) => options.flags |= *flag,
                    None => options.take(name, value, mount, sloppy)?,
                },
            }
        }
        Ok(options)
    }

    /// An option of `tmfs mount`, by its long name.
    fn take(
        &mut self,
        name: &str,
        value: Option<Vec<u8>>,
        mount: &Command,
        sloppy: bool,
    ) -> anyhow::Result<()> {
        let known = mount.get_arguments().find(|arg| arg.get_long() == Some(name));
        let Some(known) = known.filter(|arg| !arg.is_hide_set() && !NOT_HERE.contains(&name)) else {
            if sloppy {
                return Ok(());
            }
            return Err(usage(format!(
                "{name}: not an option of tmfs; those of `tmfs mount --help` may stand here, without their dashes"
            )));
        };
        let mut arg = OsString::from(format!("--{name}"));
        if !matches!(known.get_action(), ArgAction::Append) {
            let with_value = format!("--{name}=");
            self.ours.retain(|old| old != &arg && !old.as_bytes().starts_with(with_value.as_bytes()));
        }
        if let Some(value) = value {
            arg.push("=");
            arg.push(OsStr::from_bytes(&value));
        } else if known.get_num_args().is_some_and(|count| count.min_values() > 0) {
            return Err(usage(format!("{name}: takes a value, as in {name}=…")));
        }
        self.ours.push(arg);
        Ok(())
    }
}

/// The flag that a word takes back.
fn undone(name: &str) -> MsFlags {
    let flag = format!("no{name}");
    FLAGS.iter().find(|(known, _)| *known == flag).map_or(MsFlags::empty(), |(_, flag)| *flag)
}

/// The words between commas; a comma in double quotes, or after a backslash, belongs to its word.
fn words(list: &[u8]) -> Vec<Vec<u8>> {
    let (mut words, mut quoted) = (vec![Vec::new()], false);
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let word = words.last_mut().expect("never empty");
        match byte {
            b'\\' if bytes.peek() == Some(&b',') => word.extend(bytes.next()),
            b'"' => {
                quoted = !quoted;
                word.push(byte);
            }
            b',' if !quoted => words.push(Vec::new()),
            byte => word.push(byte),
        }
    }
    words
}

/// A value without the double quotes around it.
fn unquoted(value: &[u8]) -> Vec<u8> {
    let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    OsString::from_vec(inner.unwrap_or(value).to_vec()).into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> anyhow::Result<Options> {
        Options::parse(&[list.into()], &super::super::mount_command(), false)
    }

    fn ours(list: &str) -> Vec<String> {
        parse(list).unwrap().ours.into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn what_mount_and_systemd_read_themselves_is_left_out() {
        let list = "rw,defaults,auto,noauto,nofail,_netdev,user,x-systemd.requires=a.service,X-mount.mkdir,comment=a";
        assert_eq!(parse(list).unwrap(), Options { ours: vec![], flags: MsFlags::empty(), remount: false });
        assert_eq!(parse("").unwrap().ours, [""; 0]);
    }

    #[test]
    fn options_of_tmfs_mount_by_their_long_names() {
        let list = "config=/etc/tmfs/node.toml,backend=auto,show-heights,cache=through,store=/s p";
        let wanted = [
            "--config=/etc/tmfs/node.toml",
            "--backend=auto",
            "--show-heights",
            "--cache=through",
            "--store=/s p",
        ];
        assert_eq!(ours(list), wanted);
        assert_eq!(ours("show-heights=false"), ["--show-heights=false"]);
    }

    #[test]
    fn the_last_one_wins() {
        assert_eq!(
            ours("cache=through,show-heights,cache=writeback"),
            ["--show-heights", "--cache=writeback"]
        );
        assert_eq!(ours("show-heights,show-heights=false"), ["--show-heights=false"]);
        let both = [OsString::from("cache=through"), OsString::from("cache=writeback")];
        let options = Options::parse(&both, &super::super::mount_command(), false).unwrap();
        assert_eq!(options.ours, ["--cache=writeback"]);
    }

    #[test]
    fn commas_in_values() {
        assert_eq!(ours(r#"store="/a,b",show-heights"#), ["--store=/a,b", "--show-heights"]);
        assert_eq!(ours(r"store=/a\,b"), ["--store=/a,b"]);
    }

    #[test]
    fn flags_are_the_kernel_s() {
        let options = parse("nosuid,nodev,noexec,noatime,exec").unwrap();
        assert_eq!(options.flags, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME);
        let again =
            parse("remount,rw,noexec,uhelper=tmfs,user_id=0,group_id=0,default_permissions,allow_other")
                .unwrap();
        assert_eq!(again, Options { ours: vec![], flags: MsFlags::MS_NOEXEC, remount: true });
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (list, word) in [
            ("cahce=through", "cahce"),
            ("ro", "ro"),
            ("foreground", "foreground"),
            ("daemon", "daemon"),
            ("retention={}", "retention"),
            ("help", "help"),
            ("path=/x", "path"),
            ("store", "store"),
            ("sync", "sync"),
        ] {
            let error = parse(list).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{word}: ")), "{list}: {error}");
        }
        let sloppy = Options::parse(&["sync,cache=through".into()], &super::super::mount_command(), true);
        assert_eq!(sloppy.unwrap().ours, ["--cache=through"]);
    }
}

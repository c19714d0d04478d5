//! Numbers, times and names as a person reads them.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use jiff::Timestamp;
use snapstore::Height;

/// A size in IEC units, with three digits that count.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.5 and more would be shown as 1024.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A time to the second, in UTC, as `@time` takes it.
pub fn time(time: Timestamp) -> String {
    format!("{:.0}", time.round(jiff::Unit::Second).unwrap_or(time))
}

/// How long ago a time was, in its largest unit.
pub fn age(time: Timestamp, now: Timestamp) -> String {
    let secs = now.as_second().saturating_sub(time.as_second());
    match secs {
        i64::MIN..0 => "in the future".into(),
        0..60 => format!("{secs} s"),
        60..3600 => format!("{} min", secs / 60),
        3600..86_400 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

/// Several heights, shortened in the middle of a long list.
pub fn heights(heights: &[Height]) -> String {
    let text = |heights: &[Height]| heights.iter().map(Height::to_string).collect::<Vec<_>>().join(", ");
    match heights {
        [many @ .., last] if heights.len() > 12 => {
            format!("{}, … {} more …, {last}", text(&many[..8]), heights.len() - 9)
        }
        few => text(few),
    }
}

/// `1 snapshot`, `2 snapshots`.
pub fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A path on a line of its own: quoted when a terminal or a reader could take it for something else.
pub fn path(path: &Path) -> String {
    match path.to_str() {
        Some("") => ".".into(),
        Some(text) if is_plain(text) => text.into(),
        _ => quoted(path.as_os_str().as_bytes()),
    }
}

/// A text from outside, fit for a terminal.
pub fn text(text: &str) -> String {
    if is_plain(text) { text.into() } else { quoted(text.as_bytes()) }
}

/// A sentence that may hold words from outside: on one line, and nothing in it that a terminal obeys.
pub fn sentence(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '"' | '\\'))
}

/// In double quotes, with the escapes of C; what is not UTF-8 in octal.
fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() => {
                    for byte in c.to_string().bytes() {
                        let _ = write!(out, "\\{byte:03o}");
                    }
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\{byte:03o}");
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_239, "10.0 KiB"),
            (1_048_000, "1023 KiB"),
            (1_048_575, "1.00 MiB"),
            (123 << 20, "123 MiB"),
            (3 << 40, "3.00 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_and_ages() {
        let at: Timestamp = "2026-07-01T10:00:00.7Z".parse().unwrap();
        assert_eq!(time(at), "2026-07-01T10:00:01Z");
        let age = |secs| age(at, at + jiff::SignedDuration::from_secs(secs));
        assert_eq!([age(0), age(61), age(7300), age(200_000)], ["0 s", "1 min", "2 h", "2 d"]);
        assert_eq!(age(-5), "in the future");
    }

    #[test]
    fn lists_of_heights() {
        let list: Vec<Height> = (1..=20).map(Height).collect();
        assert_eq!(heights(&list[..3]), "1, 2, 3");
        assert_eq!(heights(&list), "1, 2, 3, 4, 5, 6, 7, 8, … 11 more …, 20");
        assert_eq!(heights(&[]), "");
    }

    #[test]
    fn odd_names_are_quoted() {
        for (name, text) in [
            (&b"a/b-c.\xc3\xa9"[..], "a/b-c.é"),
            (b"", "."),
            (b"a b", "\"a b\""),
            (b"a\n\x1b\"\\\xff", "\"a\\n\\033\\\"\\\\\\377\""),
            ("\u{85}".as_bytes(), "\"\\302\\205\""),
        ] {
            assert_eq!(path(Path::new(OsStr::from_bytes(name))), text);
        }
    }
}

//! From the path of a request to a path below the root, or a refusal.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

/// The path of a request, decoded, below the root: no root, no `.` and `..`, no empty components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestPath {
    /// Empty for the root itself.
    pub(crate) relative: PathBuf,
    /// Whether the request names a directory: it ends with a slash.
    pub(crate) names_directory: bool,
}

impl RequestPath {
    /// Parses the path of a URI; `None` if no file may be served for it.
    ///
    /// Each component is decoded by itself, and must be a name: a separator that is encoded, a
    /// backslash, a NUL, `.` and `..` are refused, in whatever spelling. So are empty components: a
    /// path of `//host` would be another host's in a redirect.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/').unwrap_or(path);
        if path.is_empty() {
            return Some(Self {
                relative: PathBuf::new(),
                names_directory: true,
            });
        }
        let (path, names_directory) = match path.strip_suffix('/') {
            Some(path) => (path, true),
            None => (path, false),
        };
        let mut relative = Vec::with_capacity(path.len());
        for component in path.split('/') {
            if !relative.is_empty() {
                relative.push(b'/');
            }
            let start = relative.len();
            relative.extend(percent_decode_str(component));
            if !is_name(&relative[start..]) {
                return None;
            }
        }
        Some(Self {
            relative: OsString::from_vec(relative).into(),
            names_directory,
        })
    }
}

fn is_name(component: &[u8]) -> bool {
    let is_refused = |byte: &u8| matches!(byte, b'/' | b'\\' | 0);
    !matches!(component, b"" | b"." | b"..") && !component.iter().any(is_refused)
}

#[cfg(test)]
mod tests {
    use super::RequestPath;

    fn parse(path: &str) -> Option<(String, bool)> {
        let path = RequestPath::parse(path)?;
        Some((path.relative.to_str()?.to_string(), path.names_directory))
    }

    #[test]
    fn names() {
        let file = |path: &str| Some((path.to_string(), false));
        let directory = |path: &str| Some((path.to_string(), true));
        assert_eq!(parse("/"), directory(""));
        assert_eq!(parse(""), directory(""));
        assert_eq!(parse("/a"), file("a"));
        assert_eq!(parse("a/b.txt"), file("a/b.txt"));
        assert_eq!(parse("/a/b/"), directory("a/b"));
        assert_eq!(parse("/%61%20%c3%a4"), file("a \u{e4}"));
        // Names that only look special.
        assert_eq!(parse("/.../..a/.b/%"), file(".../..a/.b/%"));
        assert_eq!(parse("/%252e%252e/a"), file("%2e%2e/a"));
    }

    #[test]
    fn what_is_refused() {
        for path in [
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/..",
            "/../a",
            "/a/../b",
            "/a/..",
            "/.",
            "/./a",
            "/a/.",
            "/%2e%2e/a",
            "/.%2E/a",
            "/%2e/a",
            "/a%2fb",
            "/a%2Fb",
            "/%2f",
            "/..%2fa",
            "/a\\b",
            "/..%5ca",
            "/a%00",
            "/a%00.txt",
            "/a/%00/b",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn names_that_are_not_utf8() {
        use std::os::unix::ffi::OsStrExt;
        let path = RequestPath::parse("/%ff%fe").unwrap();
        assert_eq!(path.relative.as_os_str().as_bytes(), [0xff, 0xfe]);
    }
}

//! `Accept-Encoding`, for files that lie there compressed (RFC 9110, section 12.5.3).

use http::header::{HeaderMap, ACCEPT_ENCODING};

/// An encoding in which a file may lie beside the file itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Brotli,
    Zstd,
    Gzip,
    Deflate,
}

/// Which encodings are looked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Precompressed(u8);

impl Encoding {
    /// The best compression first: of encodings that the client likes equally, it gets that one.
    const ALL: [Self; 4] = [Self::Brotli, Self::Zstd, Self::Gzip, Self::Deflate];

    /// The name in headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// What is appended to the name of the file.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
            Self::Deflate => ".zz",
        }
    }
}

impl Precompressed {
    pub(crate) fn with(self, encoding: Encoding) -> Self {
        Self(self.0 | 1 << encoding as u8)
    }

    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The encodings to look for, in the order in which the client prefers them. Those that it
    /// likes less than a file without any are left out.
    pub(crate) fn accepted(self, headers: &HeaderMap) -> Vec<Encoding> {
        if self.is_none() {
            return Vec::new();
        }
        let values: Vec<_> = headers.get_all(ACCEPT_ENCODING).iter().collect();
        let elements = || {
            let values = values.iter().filter_map(|value| value.to_str().ok());
            values
                .flat_map(|value| value.split(','))
                .filter_map(element)
        };
        let quality = |name: &str| {
            let named = |other: &str| elements().find(|(name, _)| name.eq_ignore_ascii_case(other));
            named(name).map(|(_, quality)| quality)
        };
        let identity = quality("identity").unwrap_or(0);
        let of = |encoding: Encoding| quality(encoding.name()).or(quality("*")).unwrap_or(0);
        let here = Encoding::ALL
            .into_iter()
            .filter(|encoding| self.0 & (1 << *encoding as u8) != 0);
        let mut accepted: Vec<_> = here.map(|encoding| (of(encoding), encoding)).collect();
        accepted.retain(|(quality, _)| *quality > 0 && *quality >= identity);
        // Stable, so that equals stay in the order of `ALL`.
        accepted.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
        accepted.into_iter().map(|(_, encoding)| encoding).collect()
    }
}

/// A name and its quality in thousandths; `None` if it is malformed.
fn element(element: &str) -> Option<(&str, u32)> {
    let (name, weight) = match element.split_once(';') {
        Some((name, weight)) => (name, weight.trim()),
        None => (element, "q=1"),
    };
    let weight = weight.strip_prefix("q=").or(weight.strip_prefix("Q="))?;
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    let is_number = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let quality = match whole {
        _ if !is_number => return None,
        "0" => format!("{fraction:0<3}").parse().ok()?,
        "1" => 1000,
        _ => return None,
    };
    Some((name.trim(), quality))
}

#[cfg(test)]
mod tests {
    use super::Encoding::{self, Brotli, Gzip, Zstd};
    use super::*;

    fn accepted(value: &str) -> Vec<Encoding> {
        let all = [Gzip, Brotli, Zstd];
        let here = all
            .into_iter()
            .fold(Precompressed::default(), Precompressed::with);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, value.parse().unwrap());
        here.accepted(&headers)
    }

    #[test]
    fn preference_of_the_client() {
        assert_eq!(accepted("gzip"), [Gzip]);
        assert_eq!(accepted("gzip, br, zstd"), [Brotli, Zstd, Gzip]);
        assert_eq!(accepted("gzip;q=0.9, br;q=0.5"), [Gzip, Brotli]);
        assert_eq!(accepted("*"), [Brotli, Zstd, Gzip]);
        assert_eq!(accepted("*;q=0.5, zstd ; q=0, GZIP"), [Gzip, Brotli]);
        assert_eq!(accepted("deflate"), []);
    }

    #[test]
    fn the_file_itself_is_preferred() {
        assert_eq!(accepted("identity, gzip;q=0.5"), []);
        assert_eq!(accepted("identity;q=0.5, gzip;q=0.5"), [Gzip]);
        assert_eq!(accepted("identity;q=0, gzip;q=0.001"), [Gzip]);
        assert_eq!(accepted("gzip;q=0"), []);
        assert_eq!(accepted("gzip;q=0.0001"), []);
        assert_eq!(accepted("gzip;level=1"), []);
        assert_eq!(accepted(""), []);
    }

    #[test]
    fn no_header() {
        let gzip = Precompressed::default().with(Gzip);
        assert_eq!(gzip.accepted(&HeaderMap::new()), []);
    }
}

//! As much HTTP as a scraper of metrics speaks: a request's first line, and an answer after which the connection is closed.
//!
//! Source: RFC 9112, sections 3 and 9.6.

/// `Content-Type` of what is for people.
pub(crate) const PLAIN: &str = "text/plain; charset=utf-8";

/// The first line of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request<'l> {
    pub(crate) method: &'l [u8],
    /// Without the query.
    pub(crate) path: &'l [u8],
}

impl<'l> Request<'l> {
    /// `None` if the line, without its line feed, is none of HTTP/1: it ends with the version, which no JSON does.
    pub(crate) fn parse(line: &'l [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut words = line.split(|byte| *byte == b' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || method.is_empty() || !matches!(version, b"HTTP/1.0" | b"HTTP/1.1") {
            return None;
        }
        Some(Self { method, path: path(target) })
    }
}

/// The path of `/metrics?query`, and of `http://localhost/metrics`, as a proxy would ask.
fn path(target: &[u8]) -> &[u8] {
    let path = match target.strip_prefix(b"http://") {
        None => target,
        Some(rest) => {
            rest.iter().position(|byte| *byte == b'/').and_then(|start| rest.get(start..)).unwrap_or_default()
        }
    };
    path.split(|byte| *byte == b'?').next().unwrap_or_default()
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Fine,
    NotFound,
    MethodNotAllowed,
    Unavailable,
}

impl Code {
    /// With what else the header must have then.
    const fn line(self) -> &'static str {
        match self {
            Self::Fine => "200 OK",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed\r\nAllow: GET",
            Self::Unavailable => "503 Service Unavailable",
        }
    }
}

/// A whole answer.
pub(crate) fn response(code: Code, kind: &str, body: &str) -> Vec<u8> {
    let (line, length) = (code.line(), body.len());
    format!("HTTP/1.1 {line}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_from_other_lines() {
        for (line, expected) in [
            ("GET /metrics HTTP/1.1\r", Some(("GET", "/metrics"))),
            ("GET /metrics HTTP/1.0", Some(("GET", "/metrics"))),
            ("POST /metrics?name[]=x HTTP/1.1\r", Some(("POST", "/metrics"))),
            ("GET http://localhost:80/metrics HTTP/1.1\r", Some(("GET", "/metrics"))),
            ("GET http://localhost HTTP/1.1\r", Some(("GET", ""))),
            ("GET / HTTP/1.1\r", Some(("GET", "/"))),
            ("GET /metrics HTTP/2", None),
            ("GET  /metrics HTTP/1.1\r", None),
            (" /metrics HTTP/1.1\r", None),
            ("GET /metrics", None),
            ("", None),
            ("{\"command\":\"status\"}", None),
            ("{\"command\": \"status\"} HTTP/1.1", Some(("{\"command\":", "\"status\"}"))),
        ] {
            let expected = expected.map(|(method, path)| Request { method: method.as_bytes(), path: path.as_bytes() });
            assert_eq!(Request::parse(line.as_bytes()), expected, "{line:?}");
        }
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let said = String::from_utf8(response(Code::MethodNotAllowed, PLAIN, "äöü\n")).unwrap();
        let expected = "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Type: text/plain; charset=utf-8\r\n\
                        Content-Length: 7\r\nConnection: close\r\n\r\näöü\n";
        assert_eq!(said, expected);
    }
}

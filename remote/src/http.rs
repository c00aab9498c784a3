//! The one client for HTTP: TLS with the roots of the operating system, time limits, bodies with a
//! bound.
//!
//! It follows no redirect; whoever wants one followed decides where to.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};

use crate::{Error, Secret};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(60);

/// What of a server's words goes into an error.
const SHOWN_CHARS: usize = 300;

/// What of the body of a refusal is read.
const REFUSAL_BYTES: usize = 64 << 10;

/// Sends requests; clones share connections.
#[derive(Clone)]
pub(crate) struct Client {
    pooled: Pooled<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    /// A client that trusts the certificate authorities that the operating system does.
    pub(crate) fn new() -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (trusted, _) = roots.add_parsable_certificates(found.certs);
        if trusted == 0 {
            // Calls without TLS still work; those with it will say that the issuer is unknown.
            tracing::warn!(
                errors = ?found.errors,
                "no certificate authorities were found: install ca-certificates or set SSL_CERT_FILE"
            );
        }
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Invalid(format!("TLS cannot be set up: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let pooled = Pooled::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Ok(Self { pooled })
    }

    /// Sends a request and waits until the answer begins.
    pub(crate) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let url = shown(request.uri());
        let agent = concat!("elanus/", env!("CARGO_PKG_VERSION"));
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(agent));
        let unreachable = |detail: String| Error::Unreachable { url: url.clone(), detail };
        match tokio::time::timeout(patience, self.pooled.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unreachable(causes(&error))),
            Err(_) => Err(unreachable(format!("nothing came for {} s", patience.as_secs_f32()))),
        }
    }
}

/// The next piece of a body; `None` at its end.
pub(crate) async fn piece(
    body: &mut Incoming,
    url: &str,
    patience: Duration,
) -> Result<Option<Bytes>, Error> {
    let broken = |detail: String| Error::Unreachable { url: url.to_owned(), detail };
    loop {
        match tokio::time::timeout(patience, body.frame()).await {
            Ok(None) => return Ok(None),
            // Trailers are of no interest.
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Ok(Some(Err(error))) => {
                return Err(broken(format!("the answer broke off: {}", causes(&error))));
            }
            Err(_) => {
                let seconds = patience.as_secs_f32();
                return Err(broken(format!("the answer stopped for {seconds} s")));
            }
        }
    }
}

/// A whole body of at most `limit` bytes.
pub(crate) async fn whole(
    mut body: Incoming,
    url: &str,
    limit: usize,
    patience: Duration,
) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = piece(&mut body, url, patience).await? {
        if bytes.len() + piece.len() > limit {
            return Err(Error::Garbage {
                url: url.to_owned(),
                detail: format!("it is larger than {limit} bytes"),
            });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// The error of an answer that is none of success; `advice` replaces the server's own words.
pub(crate) async fn refusal(
    response: Response<Incoming>,
    url: &str,
    secret: Option<&Secret>,
    advice: Option<String>,
) -> Error {
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    let own_words = async {
        // Servers repeat a key that they refuse, or a part of it.
        if status == 401 {
            return "the key was refused, or there is none".to_owned();
        }
        let patience = Duration::from_secs(2);
        let body = whole(response.into_body(), url, REFUSAL_BYTES, patience).await;
        words(&body.unwrap_or_default(), secret)
    };
    let detail = match advice {
        Some(advice) => advice,
        None => own_words.await,
    };
    Error::Refused { url: url.to_owned(), status, detail, retry_after }
}

/// What a server says, fit for an error: one line, short, without the key.
fn words(body: &[u8], secret: Option<&Secret>) -> String {
    let text = String::from_utf8_lossy(body);
    let text = secret.map_or_else(|| text.to_string(), |secret| secret.scrub(&text));
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|char| !char.is_control()).take(SHOWN_CHARS).collect();
    if line.is_empty() { "it says nothing more".to_owned() } else { line }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    // The other form, a date, is rare; without it our own pause is taken.
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The length that the headers announce.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// An error with what caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// An address as errors show it: queries may hold signatures.
pub(crate) fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    format!("{scheme}://{}{}", uri.authority().map_or("", |a| a.as_str()), uri.path())
}

/// Reads an address of scheme http or https, without a name and password in it.
pub(crate) fn parse(text: &str) -> Result<Uri, Error> {
    let refuse = |reason: &str| {
        // What stands before an `@` may be a password.
        let shown = text.rsplit('@').next().unwrap_or_default();
        Err(Error::Invalid(format!("`{}` is no address: {reason}", shown.escape_debug())))
    };
    let Ok(uri) = text.parse::<Uri>() else { return refuse("it cannot be parsed") };
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority)) if !authority.as_str().contains('@') => Ok(uri),
        (Some("http" | "https"), Some(_)) => {
            refuse("a name and password do not belong into it, give a key instead")
        }
        _ => refuse("it must begin with https:// or http://"),
    }
}

/// Scheme, host and port, with the default port of the scheme written out.
pub(crate) fn origin(uri: &Uri) -> (bool, String, u16) {
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    (secure, uri.host().unwrap_or_default().to_ascii_lowercase(), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_http_and_hold_no_password() {
        assert!(parse("https://hub.example:8443/x").is_ok());
        for bad in ["hub.example", "ftp://hub", "file:///etc/passwd", "", "http://", "https://[::"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let text = parse("https://me:secret@hub").unwrap_err().to_string();
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn an_origin_has_its_default_port() {
        let of = |text: &str| origin(&parse(text).unwrap());
        assert_eq!(of("https://HUB.example/a"), of("https://hub.example:443"));
        assert_ne!(of("https://hub.example"), of("http://hub.example"));
    }

    #[test]
    fn a_servers_words_are_short_and_hold_no_key() {
        let body = format!("{{\"error\":\n \"key sk-1 {}\"}}\u{7}", "x".repeat(9_000));
        let words = words(body.as_bytes(), Some(&Secret::new("sk-1")));
        assert!(words.starts_with("{\"error\": \"key [key] xx"), "{words}");
        assert!(words.chars().count() <= SHOWN_CHARS && !words.contains('\n'));
        assert_eq!(shown(&parse("https://cdn/x?sig=1").unwrap()), "https://cdn/x");
    }
}

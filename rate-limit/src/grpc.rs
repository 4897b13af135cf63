//! Whether a message is one of gRPC. This file is the same in `tower-capacity` and `rate-limit`.

use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

/// Whether the headers are those of gRPC: `application/grpc`, alone or with a suffix or a parameter, in
/// any case.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.is_some_and(|value| {
        value.len() >= GRPC.len()
            && value[..GRPC.len()].eq_ignore_ascii_case(GRPC)
            && matches!(
                value.get(GRPC.len()),
                None | Some(b'+' | b';' | b'-' | b' ' | b'\t')
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_content_types_are_grpc() {
        let grpc = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            is_grpc(&headers)
        };
        assert!(grpc("application/grpc"));
        assert!(grpc("Application/gRPC"));
        assert!(grpc("application/grpc+proto"));
        assert!(grpc("application/grpc-web+proto"));
        assert!(grpc("application/grpc;charset=utf-8"));
        assert!(!grpc("application/grpcish"));
        assert!(!grpc("application/json"));
        assert!(!is_grpc(&HeaderMap::new()));
    }
}

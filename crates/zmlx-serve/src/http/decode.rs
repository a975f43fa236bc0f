//! Decodes bodies. The decoded size is limited too.

use std::io::Read;

use axum::http::StatusCode;
use bytes::Bytes;

use crate::error::ApiError;

/// A supported encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Coding {
    pub(super) fn of_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            "br" => Some(Self::Brotli),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Decodes a body to at most `limit` bytes.
pub(super) fn decode(coding: Coding, bytes: &Bytes, limit: usize) -> Result<Bytes, ApiError> {
    let input: &[u8] = bytes;
    match coding {
        Coding::Gzip => read(flate2::read::MultiGzDecoder::new(input), limit),
        // Clients use this name for two different formats.
        Coding::Deflate => match read(flate2::read::ZlibDecoder::new(input), limit) {
            Err(error) if error.status == StatusCode::BAD_REQUEST => {
                read(flate2::read::DeflateDecoder::new(input), limit)
            }
            decoded => decoded,
        },
        Coding::Brotli => read(brotli_decompressor::Decompressor::new(input, 16 << 10), limit),
        Coding::Zstd => {
            let unsound = |_| ApiError::bad_request("the body is not valid zstd");
            read(ruzstd::decoding::StreamingDecoder::new(input).map_err(unsound)?, limit)
        }
    }
}

fn read(decoder: impl Read, limit: usize) -> Result<Bytes, ApiError> {
    let mut decoded = Vec::new();
    let most = (limit as u64).saturating_add(1);
    decoder
        .take(most)
        .read_to_end(&mut decoded)
        .map_err(|_| ApiError::bad_request("the body is not encoded as Content-Encoding says"))?;
    if decoded.len() > limit {
        let message = format!("the decoded body has more than {limit} bytes");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(decoded.into())
}

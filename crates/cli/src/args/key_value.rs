//! `KEY=VALUE`, for flags that are repeated.

/// Splits at the first `=`; the key is not empty.
///
/// # Errors
/// A sentence that names the text and what is understood.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not KEY=VALUE")),
    }
}

//! Reads single fields of a JSON object.

use std::borrow::Cow;

use serde_json::{Map, Value};
use stallfree_core::TokenId;

use crate::ApiError;

/// A JSON object whose fields are read by name; absent and `null` are the same.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Takes a body apart.
    pub(crate) fn new(body: Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(map) => Ok(Self(map)),
            other => Err(ApiError::invalid(format!(
                "The request body must be a JSON object, not {}.",
                kind_of(&other)
            ))),
        }
    }

    /// Returns a field of any type.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Returns a boolean, `default` if absent.
    pub(crate) fn bool(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(wrong_type(name, "a boolean", other)),
        }
    }

    /// Returns a string.
    pub(crate) fn string(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(name, "a string", other)),
        }
    }

    /// Returns an integer for which `accept` holds; `rule` says in words what that is.
    pub(crate) fn int(
        &self,
        name: &str,
        rule: &str,
        accept: impl Fn(i64) -> bool,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number =
            integer(value).ok_or_else(|| wrong_type(name, "an integer of 64 bits", value))?;
        if accept(number) { Ok(Some(number)) } else { Err(out_of_range(name, rule, value)) }
    }

    /// Returns a count: an integer of at least `min`.
    pub(crate) fn count(&self, name: &str, min: usize) -> Result<Option<usize>, ApiError> {
        let rule = format!("at least {min}");
        let value =
            self.int(name, &rule, |v| usize::try_from(v).is_ok_and(|count| count >= min))?;
        Ok(value.and_then(|v| usize::try_from(v).ok()))
    }

    /// Returns a finite number for which `accept` holds; `rule` says in words what that is.
    pub(crate) fn number(
        &self,
        name: &str,
        rule: &str,
        accept: impl Fn(f32) -> bool,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = finite(value).ok_or_else(|| wrong_type(name, "a finite number", value))?;
        if accept(number) { Ok(Some(number)) } else { Err(out_of_range(name, rule, value)) }
    }

    /// Returns a list of strings; a single string counts as a list of one.
    pub(crate) fn strings(&self, name: &str) -> Result<Vec<String>, ApiError> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::String(value)) => Ok(vec![value.clone()]),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| ApiError::param(name, format!("`{name}` must hold strings only."))),
            Some(other) => Err(wrong_type(name, "a string or a list of strings", other)),
        }
    }

    /// Returns a list of token ids below `vocab_size`.
    pub(crate) fn token_ids(
        &self,
        name: &str,
        vocab_size: usize,
    ) -> Result<Option<Vec<TokenId>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                items.iter().map(|item| token_id(name, item, vocab_size)).collect::<Result<_, _>>()
            }
            .map(Some),
            Some(other) => Err(wrong_type(name, "a list of token ids", other)),
        }
    }

    /// Returns an object's fields.
    pub(crate) fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong_type(name, "an object", other)),
        }
    }

    /// Returns an object's fields, to be read in their turn.
    pub(crate) fn nested(&self, name: &str) -> Result<Option<Self>, ApiError> {
        Ok(self.object(name)?.cloned().map(Self))
    }
}

/// Reads one token id below `vocab_size`; `name` is the parameter to blame.
pub(crate) fn token_id(name: &str, value: &Value, vocab_size: usize) -> Result<TokenId, ApiError> {
    let number = integer(value).ok_or_else(|| wrong_type(name, "a list of token ids", value))?;
    TokenId::try_from(number).ok().filter(|id| (*id as usize) < vocab_size).ok_or_else(|| {
        out_of_range(name, &format!("a token id from 0 to {}", vocab_size.saturating_sub(1)), value)
    })
}

/// Returns a number's integer value: `5` and `5.0`, but not `5.5`.
fn integer(value: &Value) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: beyond it a float no longer names one integer.
    value.as_i64().or_else(|| {
        value.as_f64().filter(|v| v.fract() == 0.0 && v.abs() <= EXACT).map(|v| v as i64)
    })
}

/// Returns a number as the engine holds it, if it can.
fn finite(value: &Value) -> Option<f32> {
    value.as_f64().map(|v| v as f32).filter(|v| v.is_finite())
}

/// Returns the refusal of a value of the wrong type.
pub(crate) fn wrong_type(name: &str, expected: &str, got: &Value) -> ApiError {
    ApiError::param(name, format!("`{name}` must be {expected}, not {}.", kind_of(got)))
}

fn out_of_range(name: &str, rule: &str, got: &Value) -> ApiError {
    ApiError::param(name, format!("`{name}` must be {rule}, not {got}."))
}

fn kind_of(value: &Value) -> Cow<'static, str> {
    Cow::Borrowed(match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) => return Cow::Owned(number.to_string()),
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    })
}

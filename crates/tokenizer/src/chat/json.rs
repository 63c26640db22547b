//! JSON as Python writes it, because models were trained on that.

use serde_json::Value;

/// The arguments of Python's `json.dumps` that templates use.
#[derive(Clone, Debug, Default)]
pub(super) struct Style {
    pub(super) indent: Option<usize>,
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
    /// Between items, and between key and value.
    pub(super) separators: Option<(String, String)>,
}

pub(super) fn dumps(value: &Value, style: &Style) -> String {
    let default_item = if style.indent.is_some() { "," } else { ", " };
    let (item, key) = style
        .separators
        .as_ref()
        .map_or((default_item, ": "), |(item, key)| (item.as_str(), key.as_str()));
    let mut writer = Writer { out: String::new(), style, item, key };
    writer.value(value, 0);
    writer.out
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::String(text) => self.string(text),
            Value::Array(items) if items.is_empty() => self.out.push_str("[]"),
            Value::Array(items) => {
                self.out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.value(item, depth + 1);
                }
                self.new_line(depth);
                self.out.push(']');
            }
            Value::Object(entries) if entries.is_empty() => self.out.push_str("{}"),
            Value::Object(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.style.sort_keys {
                    entries.sort_by_key(|&(key, _)| key);
                }
                self.out.push('{');
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.string(key);
                    self.out.push_str(self.key);
                    self.value(value, depth + 1);
                }
                self.new_line(depth);
                self.out.push('}');
            }
            plain => self.out.push_str(&plain.to_string()),
        }
    }

    fn separate(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(self.item);
        }
        self.new_line(depth);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = Value::String(text.to_owned()).to_string();
        if !self.style.ensure_ascii {
            self.out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                self.out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    self.out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

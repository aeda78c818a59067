//! The Jinja environment Hugging Face renders chat templates in, on minijinja.
//!
//! `transformers.utils.chat_template_utils` is the reference: `trim_blocks` and `lstrip_blocks`, loop
//! controls, `raise_exception`, `strftime_now`, a `tojson` that is Python's `json.dumps`, and values
//! printed as Python prints them. Its `{% generation %}` tag becomes a filter block that leaves marks.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Marks around what a `{% generation %}` block renders: noncharacters, so no text has them.
pub(super) const GENERATION_START: &str = "\u{FDD0}\u{FDD1}";
/// See [`GENERATION_START`].
pub(super) const GENERATION_END: &str = "\u{FDD0}\u{FDD2}";

/// A template's own `raise_exception(message)`, kept apart from errors in the template.
#[derive(Debug)]
pub(super) struct Raised(pub String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Raised {}

/// An environment with everything but the template.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    // Templates from a model's repository are strangers' code: nothing is loaded from disk.
    minijinja_contrib::add_to_environment(&mut env);
    env.set_unknown_method_callback(method);
    env.set_formatter(|out, state, value| match printed(value) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    });
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| printed(value).unwrap_or_else(|| value.to_string()));
    env.add_filter("generation_span", |text: &str| format!("{GENERATION_START}{text}{GENERATION_END}"));
    // Jinja asks for a length and an index, which strings and mappings have too.
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    // In minijinja none iterates as an empty list; templates ask this to tell the two apart.
    env.add_test("iterable", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable)
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", |format: &str| {
        jiff::fmt::strtime::format(format, &jiff::Zoned::now())
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
    });
    Ok(env)
}

/// Rewrites `{% generation %}` and `{% endgeneration %}`, which minijinja does not know; says whether
/// there was one.
pub(super) fn rewrite_generation(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let name = tag[2..end].trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => Some("filter generation_span"),
            "endgeneration" => Some("endfilter"),
            _ => None,
        };
        match replacement {
            Some(new) => {
                out.push_str(&tag.replacen(name, new, 1));
                found = true;
            }
            None => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    (out, found)
}

/// Python's string methods; minijinja-contrib has most.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), [argument]) = (value.as_str(), args)
        && let Some(argument) = argument.as_str()
    {
        match name {
            "removeprefix" => return Ok(text.strip_prefix(argument).unwrap_or(text).into()),
            "removesuffix" => return Ok(text.strip_suffix(argument).unwrap_or(text).into()),
            "partition" => {
                let (a, b) = text.split_once(argument).unwrap_or((text, ""));
                let found = if text.contains(argument) { argument } else { "" };
                return Ok([a, found, b].map(Value::from).to_vec().into());
            }
            "rpartition" => {
                let (a, b) = text.rsplit_once(argument).unwrap_or(("", text));
                let found = if text.contains(argument) { argument } else { "" };
                return Ok([a, found, b].map(Value::from).to_vec().into());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Python's `str()` of values that minijinja prints in another way: containers and floats.
fn printed(value: &Value) -> Option<String> {
    let float = value.is_number() && !value.is_integer();
    let container = matches!(value.kind(), ValueKind::Seq | ValueKind::Map);
    (float || container).then(|| {
        let mut out = String::new();
        repr(value, &mut out);
        out
    })
}

/// Python's `repr()`.
fn repr(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::String => repr_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            out.push('[');
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&f64::try_from(value.clone()).map_or_else(|_| value.to_string(), python_float));
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Python's `repr(float)`: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn python_float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "nan".into()
        } else if x > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// `json.dumps` with Hugging Face's defaults: `ensure_ascii=False, indent=None`.
fn tojson(value: &Value, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<String, Error> {
    let ascii = ensure_ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false);
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        Some(value) if value.as_str().is_some() => value.as_str().map(str::to_owned),
        Some(value) if !value.is_none() => value.as_i64().map(|n| " ".repeat(n.clamp(0, 64) as usize)),
        _ => None,
    };
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two strings")),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let sort = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut out = String::new();
    Dump { ascii, indent, item, key, sort }.write(value, 0, &mut out)?;
    Ok(out)
}

/// The options of `json.dumps`.
struct Dump {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

impl Dump {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&python_float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(['[', ']'], items.len(), depth, out, |i, out| self.write(&items[i], depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.container(['{', '}'], keys.len(), depth, out, |i, out| {
                    let name = if keys[i].kind() == ValueKind::Bool {
                        keys[i].to_string().to_lowercase()
                    } else {
                        keys[i].to_string()
                    };
                    self.string(&name, out);
                    out.push_str(&self.key);
                    self.write(&value.get_item(&keys[i])?, depth + 1, out)
                })?;
            }
            other => {
                return Err(Error::new(ErrorKind::BadSerialization, format!("{other} is not JSON serializable")));
            }
        }
        Ok(())
    }

    fn container(
        &self,
        brackets: [char; 2],
        len: usize,
        depth: usize,
        out: &mut String,
        mut item: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(brackets[0]);
        for i in 0..len {
            out.push_str(if i > 0 { &self.item } else { "" });
            line(depth + 1, out);
            item(i, out)?;
        }
        if len > 0 {
            line(depth, out);
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 || (self.ascii && !c.is_ascii()) => {
                    let mut units = [0; 2];
                    c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
                // `ensure_ascii` escapes DEL no more than without.
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_prints_them() {
        for (x, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e-5, "1e-05"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (123_456_789.125, "123456789.125"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (0.0, "0.0"),
        ] {
            assert_eq!(python_float(x), text);
        }
    }

    #[test]
    fn generation_tags() {
        let (source, found) =
            rewrite_generation("a{%- generation -%}b{% endgeneration %}{% if generation %}{% endif %}{% x");
        assert!(found);
        assert_eq!(source, "a{%- filter generation_span -%}b{% endfilter %}{% if generation %}{% endif %}{% x");
    }
}

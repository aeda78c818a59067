//! The text step between `shaders/*.wgsl` and naga: includes, constants, conditions, unrolling, bindings.
//!
//! naga emits `while` loops that drivers do not unroll and rejects `override`-sized workgroup arrays, so both
//! are done in text:
//!
//! ```text
//! #include "common.wgsl"          the file's text, expanded with the same constants
//! #if NAME  /  #if !NAME  /  #if NAME == 4  … #else … #endif
//! #for i in 0..NAME … #endfor     the block once for each value, ${i} replaced; ends may be sums, NAME+1
//! #bind x array<f32>              the next @binding of group 0, as a storage buffer
//! ${NAME}                         the constant's value, in directives too
//! ```

use std::collections::BTreeMap;

/// Constants by name; a flag is a constant that is not 0, an undefined name is 0 in conditions.
pub type Defines = BTreeMap<&'static str, i64>;

/// Expands `name` from `files` (name to text). Bit b of `read_only` makes storage binding b (counted from 1,
/// the uniform parameters are binding 0) `read` instead of `read_write`.
///
/// # Errors
/// A message that names the file and the line that is wrong.
pub fn expand(
    files: &dyn Fn(&str) -> Option<&'static str>,
    name: &str,
    defines: &Defines,
    read_only: u32,
) -> Result<String, String> {
    let values = defines.iter().map(|(k, v)| (k.to_string(), *v)).collect();
    let mut step = Step { files, values, read_only, bindings: 0, out: String::new() };
    step.file(name)?;
    Ok(step.out)
}

struct Step<'a> {
    files: &'a dyn Fn(&str) -> Option<&'static str>,
    values: BTreeMap<String, i64>,
    read_only: u32,
    bindings: u32,
    out: String,
}

impl Step<'_> {
    fn file(&mut self, name: &str) -> Result<(), String> {
        let text = (self.files)(name).ok_or_else(|| format!("no shader file '{name}'"))?;
        let lines: Vec<&str> = text.lines().collect();
        self.block(&lines).map_err(|message| format!("{name}: {message}"))
    }

    fn block(&mut self, lines: &[&str]) -> Result<(), String> {
        let mut at = 0;
        while at < lines.len() {
            let line = lines[at].trim();
            let Some(directive) = line.strip_prefix('#') else {
                let text = self.substitute(lines[at])?;
                self.out.push_str(&text);
                self.out.push('\n');
                at += 1;
                continue;
            };
            let (word, rest) = directive.split_once(' ').unwrap_or((directive, ""));
            let rest = &self.substitute(rest)?;
            match word {
                "include" => {
                    self.file(rest.trim_matches('"'))?;
                    at += 1;
                }
                "bind" => {
                    self.bind(rest)?;
                    at += 1;
                }
                "if" => {
                    let (alternative, end) = find_end(lines, at)?;
                    let body = if self.condition(rest)? {
                        &lines[at + 1..alternative.unwrap_or(end)]
                    } else {
                        alternative.map_or(&lines[end..end], |a| &lines[a + 1..end])
                    };
                    self.block(body)?;
                    at = end + 1;
                }
                "for" => {
                    let (_, end) = find_end(lines, at)?;
                    let (variable, range) = rest.split_once(" in ").ok_or_else(|| format!("bad line '{line}'"))?;
                    let (first, last) = range.split_once("..").ok_or_else(|| format!("bad line '{line}'"))?;
                    for value in self.value(first)?..self.value(last)? {
                        self.values.insert(variable.trim().to_string(), value);
                        self.block(&lines[at + 1..end])?;
                    }
                    self.values.remove(variable.trim());
                    at = end + 1;
                }
                _ => return Err(format!("line {}: unknown directive '{line}'", at + 1)),
            }
        }
        Ok(())
    }

    fn bind(&mut self, rest: &str) -> Result<(), String> {
        let (name, kind) = rest.split_once(' ').ok_or_else(|| format!("bad binding '{rest}'"))?;
        self.bindings += 1;
        let access = if self.read_only >> self.bindings & 1 == 1 { "read" } else { "read_write" };
        let kind = kind.trim();
        self.out.push_str(&format!("@group(0) @binding({}) var<storage, {access}> {name}: {kind};\n", self.bindings));
        Ok(())
    }

    fn value(&self, text: &str) -> Result<i64, String> {
        let text = text.trim();
        if let Some((left, right)) = text.split_once('+') {
            return Ok(self.value(left)? + self.value(right)?);
        }
        text.parse().ok().or_else(|| self.values.get(text).copied()).ok_or_else(|| format!("'{text}' has no value"))
    }

    fn condition(&self, text: &str) -> Result<bool, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let flag = |name: &str| self.values.get(name).copied().unwrap_or(0);
        match words[..] {
            [name] => Ok(name.strip_prefix('!').map_or_else(|| flag(name) != 0, |name| flag(name) == 0)),
            [name, operator, right] => {
                let (left, right) = (flag(name), self.value(right)?);
                match operator {
                    "==" => Ok(left == right),
                    "!=" => Ok(left != right),
                    "<" => Ok(left < right),
                    ">" => Ok(left > right),
                    _ => Err(format!("unknown operator in '{text}'")),
                }
            }
            _ => Err(format!("bad condition '{text}'")),
        }
    }

    fn substitute(&self, line: &str) -> Result<String, String> {
        let mut parts = line.split("${");
        let mut text = parts.next().unwrap_or("").to_string();
        for part in parts {
            let (name, rest) = part.split_once('}').ok_or_else(|| format!("unclosed ${{ in '{line}'"))?;
            text.push_str(&self.value(name)?.to_string());
            text.push_str(rest);
        }
        Ok(text)
    }
}

/// The `#else` (if any) and the `#endif` / `#endfor` that belong to the block opened at `start`.
fn find_end(lines: &[&str], start: usize) -> Result<(Option<usize>, usize), String> {
    let mut depth = 0;
    let mut alternative = None;
    for (i, line) in lines.iter().enumerate().skip(start + 1) {
        match line.trim() {
            "#endif" | "#endfor" if depth == 0 => return Ok((alternative, i)),
            "#endif" | "#endfor" => depth -= 1,
            "#else" if depth == 0 => alternative = Some(i),
            text if text.starts_with("#if ") || text.starts_with("#for ") => depth += 1,
            _ => {}
        }
    }
    Err(format!("line {}: block without an end", start + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &'static str, defines: &[(&'static str, i64)]) -> Result<String, String> {
        let files = move |name: &str| match name {
            "main" => Some(text),
            "part" => Some("part ${N}"),
            _ => None,
        };
        expand(&files, "main", &defines.iter().copied().collect(), 0b10)
    }

    #[test]
    fn directives() {
        let text = "#bind x array<f32>\n#bind y array<u32>\n#for i in 0..N\n#if i == 1\none\n#else\na${i}\n#endif\n#endfor\n#include \"part\"";
        let want = "@group(0) @binding(1) var<storage, read> x: array<f32>;\n@group(0) @binding(2) var<storage, read_write> y: array<u32>;\na0\none\na2\npart 3\n";
        assert_eq!(run(text, &[("N", 3)]).as_deref(), Ok(want));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(run("#if X\nopen", &[]).is_err_and(|m| m.contains("block without an end")));
        assert!(run("${MISSING}", &[]).is_err_and(|m| m.contains("MISSING")));
        assert!(run("#nonsense", &[]).is_err_and(|m| m.contains("nonsense")));
        assert!(run("#include \"absent\"", &[]).is_err_and(|m| m.contains("absent")));
    }
}

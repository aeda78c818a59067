//! Who scores the answers: anything that is given JSON and gives JSON.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

/// An answer to be scored.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The row of the data file.
    pub row: &'a Value,
    /// What the model said.
    pub answer: &'a str,
}

/// A judge.
pub trait Reward {
    /// A number for each answer, larger for better ones.
    ///
    /// # Errors
    /// What keeps the judge from scoring.
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<f64>>;
}

impl<F: FnMut(&[Answer]) -> Result<Vec<f64>>> Reward for F {
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<f64>> {
        self(answers)
    }
}

/// `{"prompts": […], "completions": […], "rows": […]}`: all answers of a step.
fn question(answers: &[Answer]) -> String {
    let each = |f: &dyn Fn(&Answer) -> Value| answers.iter().map(f).collect::<Vec<_>>();
    json!({
        "prompts": each(&|a| a.row["prompt"].clone()),
        "completions": each(&|a| a.answer.into()),
        "rows": each(&|a| a.row.clone()),
    })
    .to_string()
}

/// `[…]` or `{"rewards": […]}`.
fn numbers(text: &str, from: &str) -> Result<Vec<f64>> {
    let wrong = || {
        let start: String = text.trim().chars().take(80).collect();
        Error::invalid(format!("{from} said '{start}', expected a JSON list of numbers, or {{\"rewards\": […]}}"))
    };
    let value: Value = serde_json::from_str(text).map_err(|_| wrong())?;
    let list = value.as_array().or_else(|| value["rewards"].as_array()).ok_or_else(wrong)?;
    list.iter().map(|n| n.as_f64().ok_or_else(wrong)).collect()
}

/// A shell command that reads the question from its standard input and writes the rewards to its standard output.
pub struct CommandReward {
    /// What `sh -c` runs (`cmd /C` on Windows), once a step.
    pub command: String,
}

impl Reward for CommandReward {
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<f64>> {
        let name = format!("the reward command '{}'", self.command);
        let failed = |e: std::io::Error| Error::invalid(format!("{name}: {e}"));
        let (shell, flag) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
        let mut command = Command::new(shell);
        command.args([flag, &self.command]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let question = question(answers);
        // A command that writes before it has read everything must not wait for us.
        let writer =
            child.stdin.take().map(|mut input| std::thread::spawn(move || input.write_all(question.as_bytes())));
        let output = child.wait_with_output().map_err(failed)?;
        // A command may know its answer without reading to the end.
        drop(writer.map(std::thread::JoinHandle::join));
        if !output.status.success() {
            return Err(Error::invalid(format!("{name} ended with {}", output.status)));
        }
        numbers(&String::from_utf8_lossy(&output.stdout), &name)
    }
}

/// A server that gets the question as the body of a POST and answers with the rewards.
pub struct HttpReward {
    /// `http://…`
    pub url: String,
}

impl Reward for HttpReward {
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<f64>> {
        let name = format!("the judge at {}", self.url);
        let failed = |e: &dyn std::fmt::Display| Error::invalid(format!("{name}: {e}"));
        let response = ureq::post(&self.url)
            .set("Content-Type", "application/json")
            .send_string(&question(answers))
            .map_err(|e| failed(&e))?;
        numbers(&response.into_string().map_err(|e| failed(&e))?, &name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(reward: &mut dyn Reward) -> Result<Vec<f64>> {
        let row = json!({ "prompt": "p", "target": 3 });
        reward.score(&[Answer { row: &row, answer: "a" }, Answer { row: &row, answer: "b" }])
    }

    #[test]
    #[cfg(unix)]
    fn a_command_is_asked_once() {
        // It sees both answers and the row's other columns.
        let command = r#"grep -q '"completions":\["a","b"\].*"target":3' && echo '{"rewards": [1, 0.5]}'"#;
        assert_eq!(two(&mut CommandReward { command: command.into() }).unwrap(), [1.0, 0.5]);
        let error = |command: &str| two(&mut CommandReward { command: command.into() }).unwrap_err().to_string();
        assert!(error("echo hello").contains("said 'hello'"));
        assert!(error("exit 3").contains("exit status: 3"));
    }

    #[test]
    fn a_server_gets_a_post() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/score", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"}") {
                let mut buffer = [0; 4096];
                let n = stream.read(&mut buffer).unwrap();
                seen.extend_from_slice(&buffer[..n]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n[2, 1]").unwrap();
            String::from_utf8(seen).unwrap()
        });
        assert_eq!(two(&mut HttpReward { url }).unwrap(), [2.0, 1.0]);
        let seen = server.join().unwrap();
        assert!(seen.starts_with("POST /score") && seen.contains(r#""completions":["a","b"]"#), "{seen}");
    }
}

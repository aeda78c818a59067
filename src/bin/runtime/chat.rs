//! `runtime chat`: a conversation on a terminal, or one message a line from a pipe.

use crate::common::{self, ADAPTER, CacheArgs, ModelArgs};
use crate::generate::{chat_ids, stream};
use crate::sampling::SamplingArgs;
use crate::speculative::SpeculativeArgs;
use runtime::engine::text::TextOptions;
use runtime::{Error, Result};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    speculative: SpeculativeArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A LoRA adapter in PEFT's format
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let model = args.model.load()?;
    let speculation = args.speculative.load(&model)?;
    let engine = common::engine(model.clone(), args.adapter.as_deref(), args.cache, speculation)?;
    let adapter = args.adapter.as_ref().map(|_| ADAPTER.to_owned());
    let talking = std::io::stdin().is_terminal();
    if talking {
        eprintln!("{} on {}. /reset forgets the conversation, /exit ends it.", model.name, model.device.info().name);
    }
    let start: Vec<Value> = args.system.iter().map(|text| json!({ "role": "system", "content": text })).collect();
    let mut messages = start.clone();
    let mut input = std::io::stdin().lock();
    let mut line = String::new();
    loop {
        if talking {
            common::print("> ")?;
        }
        line.clear();
        let read = input.read_line(&mut line).map_err(|error| Error::io("stdin", error))?;
        let text = line.trim();
        match text {
            _ if read == 0 => break,
            "" => continue,
            "/exit" | "/quit" | "/bye" => break,
            "/reset" => {
                messages.clone_from(&start);
                continue;
            }
            _ => messages.push(json!({ "role": "user", "content": text })),
        }
        let request = args.sampling.request(chat_ids(&model, &Value::Array(messages.clone()))?, adapter.clone());
        let options = TextOptions { stop: args.sampling.stop.clone(), ..TextOptions::default() };
        let mut answer = String::new();
        let done = stream(&engine, request, options, |text| {
            answer.push_str(text);
            common::print(text)
        });
        common::print("\n")?;
        match done {
            Ok(_) => messages.push(json!({ "role": "assistant", "content": answer })),
            // On a terminal the next message may do better; in a script an error is an error.
            Err(error) if talking => {
                eprintln!("error: {error}");
                messages.pop();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

//! The output of containers: each line is shown with its origin, and the last ones are kept for error messages.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;

/// Lines kept for each origin.
const KEPT: usize = 30;
/// A longer line is cut, in bytes.
const LONGEST_LINE: usize = 8 * 1024;

/// The output of one container.
#[derive(Clone)]
pub(crate) struct Log {
    origin: Arc<str>,
    last: Arc<Mutex<VecDeque<String>>>,
}

impl Log {
    /// Shown as `[origin] line`.
    pub(crate) fn new(origin: String) -> Self {
        Self { origin: origin.into(), last: Arc::default() }
    }

    /// A descriptor to write to, once for each process; lines are read from it until all its copies are closed.
    pub(crate) fn writer(&self) -> io::Result<OwnedFd> {
        let (reader, writer) = io::pipe()?;
        let reader = OwnedFd::from(reader);
        rustix::io::ioctl_fionbio(&reader, true)?;
        let reader = pipe::Receiver::from_owned_fd(reader)?;
        let log = self.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::with_capacity(LONGEST_LINE, reader);
            let mut line = Vec::new();
            while let Ok(true) = read_line(&mut lines, &mut line).await {
                log.add(&String::from_utf8_lossy(&line));
            }
        });
        Ok(writer.into())
    }

    /// The last lines, oldest first.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn add(&self, line: &str) {
        let line = &redacted(line);
        println!("[{}] {line}", self.origin);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(line.to_owned());
    }
}

/// The line without the tokens in it: an Envoy that crashes prints the headers of its open requests.
fn redacted(line: &str) -> String {
    const TOKEN: &str = "Bearer ";
    let mut parts = line.split(TOKEN);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~' | '+' | '/' | '=');
        text.push_str(TOKEN);
        text.push_str("[redacted]");
        text.push_str(part.trim_start_matches(is_token));
    }
    text
}

/// Reads up to a line's end or [`LONGEST_LINE`]; false at the end of the stream.
async fn read_line(reader: &mut BufReader<pipe::Receiver>, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(!line.is_empty());
        }
        let newline = available.iter().position(|byte| *byte == b'\n');
        let taken = newline.unwrap_or(available.len()).min(LONGEST_LINE - line.len());
        line.extend_from_slice(&available[..taken]);
        let ends = newline == Some(taken);
        reader.consume(taken + usize::from(ends));
        if ends || line.len() == LONGEST_LINE {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn a_token_in_a_line_is_not_shown() {
        let line = "':path', '/x' 'authorization', 'Bearer eyJh.eyJz-_.c2ln' 'te', 'trailers'; Bearer abc";
        let shown = "':path', '/x' 'authorization', 'Bearer [redacted]' 'te', 'trailers'; Bearer [redacted]";
        assert_eq!(redacted(line), shown);
        assert_eq!(redacted("nothing to hide"), "nothing to hide");
    }
}

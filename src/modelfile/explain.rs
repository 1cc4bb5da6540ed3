//! What a Modelfile comes to: every value in force, and the line it comes from.

use super::{Instruction, Keyword, Modelfile};

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The instruction in lower case, or the parameter's name.
    pub name: String,
    /// Its value as a person reads it.
    pub value: String,
    /// `line 3`, `lines 3, 5`, or `default`.
    pub origin: String,
}

impl Modelfile {
    /// Lists every value in force: the instructions that stand in the file, then all parameters that act.
    pub fn explain(&self) -> Vec<Explained> {
        let mut rows = Vec::new();
        for keyword in Keyword::ALL {
            match keyword {
                Keyword::Parameter => {}
                Keyword::License | Keyword::Message => rows.extend(self.all(keyword).map(explained)),
                _ => rows.extend(self.last(keyword).map(explained)),
            }
        }
        for (name, value) in self.parameters.rows() {
            let mut lines: Vec<_> = self
                .all(Keyword::Parameter)
                .filter(|instruction| instruction.argument == name)
                .map(|instruction| instruction.line.to_string())
                .collect();
            if name != "stop" {
                lines.drain(..lines.len().saturating_sub(1));
            }
            let origin = match lines.as_slice() {
                [] => "default".to_owned(),
                [line] => format!("line {line}"),
                several => format!("lines {}", several.join(", ")),
            };
            rows.push(Explained { name: name.to_owned(), value, origin });
        }
        rows
    }
}

fn explained(instruction: &Instruction) -> Explained {
    let keyword = instruction.keyword.as_str().to_ascii_lowercase();
    let name = match instruction.argument.as_str() {
        "" => keyword,
        argument => format!("{keyword} {argument}"),
    };
    Explained { name, value: instruction.value.clone(), origin: format!("line {}", instruction.line) }
}

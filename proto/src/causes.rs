//! What is said of an error.

use std::error::Error;

/// An error with its causes, the outermost first, in one line.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text.push_str(": ");
        text.push_str(&deeper.to_string());
        cause = deeper.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Link(&'static str, #[source] Option<Box<Link>>);

    #[test]
    fn every_cause_is_named_once() {
        let chain = Link("open", Some(Box::new(Link("read", Some(Box::new(Link("disk", None)))))));
        assert_eq!(with_causes(&chain), "open: read: disk");
        assert_eq!(with_causes(&Link("alone", None)), "alone");
    }
}

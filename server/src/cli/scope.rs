//! What work is made by and from, as people type it.

/// `NAME=VALUE`, cut at the first equals sign. What names and values may be is for the server to say.
pub(super) fn parse(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty());
    let (name, value) =
        parts.ok_or_else(|| format!("'{text}' has no name or no value: expected NAME=VALUE, such as code=v7"))?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_a_name_and_a_value() {
        assert_eq!(parse("code=v7"), Ok(("code".to_owned(), "v7".to_owned())));
        assert_eq!(parse("config=a=b"), Ok(("config".to_owned(), "a=b".to_owned())));
        for text in ["", "code", "code=", "=v7"] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(&format!("'{text}'")) && problem.contains("such as code=v7"), "{problem}");
        }
    }
}

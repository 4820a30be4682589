//! The names that the server's certificate is good for.

use std::net::IpAddr;

use super::CaError;

/// The given ones, this host, and loopback.
pub fn server_names(given: &[String], hostname: Option<String>) -> Result<Vec<String>, CaError> {
    let mut names = Vec::new();
    for name in given {
        if name.parse::<IpAddr>().is_err() && !is_host_name(name) {
            return Err(CaError::Name { name: name.clone() });
        }
        names.push(name.clone());
    }
    names.extend(hostname.filter(|name| is_host_name(name)));
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    names.sort();
    names.dedup();
    Ok(names)
}

fn is_host_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_host_names_or_addresses() {
        assert!(server_names(&["cp.example".into(), "10.0.0.1".into(), "fd00::1".into()], None).is_ok());
        assert!(matches!(server_names(&["a_b".into()], None), Err(CaError::Name { .. })));
        assert!(matches!(server_names(&[String::new()], None), Err(CaError::Name { .. })));
    }
}

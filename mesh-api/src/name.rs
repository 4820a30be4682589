//! Forms of names: DNS-1123 labels and subdomains, labels, trust domains, host names.
//!
//! Names become parts of paths (cgroups), of SPIFFE IDs and of xDS resource names: what passes here holds no
//! slash, no `..`, no upper case and no control character.
//! Not here: what is named.

/// A form that text must have, and how to say so.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Says what is accepted.
    pub accepted: &'static str,
    /// Whether text has the form.
    pub holds: fn(&str) -> bool,
}

/// Name of a service, namespace or port.
pub const LABEL: Form = Form {
    accepted: "a DNS label: 1..=63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
    holds: is_label,
};

/// Name of everything else: workloads, nodes, service accounts, routes, policies.
pub const SUBDOMAIN: Form = Form {
    accepted: "a DNS subdomain: 1..=253 characters, labels of 1..=63 of a-z, 0-9 and '-' joined by '.'",
    holds: is_subdomain,
};

/// Key of a label.
pub const LABEL_KEY: Form = Form {
    accepted: "a label key: [DNS subdomain/]name, name of 1..=63 of letters, digits, '-', '_', '.', starting \
               and ending with a letter or digit",
    holds: is_label_key,
};

/// Value of a label.
pub const LABEL_VALUE: Form = Form {
    accepted: "a label value: 0..=63 of letters, digits, '-', '_', '.', starting and ending with a letter or \
               digit",
    holds: is_label_value,
};

/// Trust domain of a SPIFFE ID.
pub const TRUST_DOMAIN: Form =
    Form { accepted: "a trust domain: 1..=255 of a-z, 0-9, '.', '-' and '_'", holds: is_trust_domain };

/// Host name of a route: exact, or one leading wildcard label.
pub const HOSTNAME: Form = Form {
    accepted: "a lower-case host name such as shop.example or *.shop.example, not an address",
    holds: is_hostname,
};

/// A DNS-1123 label.
pub fn is_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// A DNS-1123 subdomain.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_qualified(name),
        None => is_qualified(text),
    }
}

fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_qualified(text)
}

fn is_trust_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b))
}

fn is_hostname(text: &str) -> bool {
    let host = text.strip_prefix("*.").unwrap_or(text);
    is_subdomain(host) && host.parse::<std::net::Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains_end_where_dns_says() {
        for good in ["a", "a-b", "0", &"x".repeat(63)] {
            assert!(is_label(good) && is_subdomain(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "..", "ä", &"x".repeat(64)] {
            assert!(!is_label(bad) && !is_subdomain(bad), "{bad}");
        }
        assert!(!is_label("a.b") && is_subdomain("a.b") && !is_subdomain("a..b") && !is_subdomain("."));
        let long = vec!["x".repeat(50); 5].join(".");
        assert!(!is_subdomain(&long), "254 characters");
    }

    #[test]
    fn label_keys_may_have_a_prefix() {
        assert!(is_label_key("app") && is_label_key("app.kubernetes.io/name") && is_label_key("A_b"));
        assert!(!is_label_key("/name") && !is_label_key("a/b/c") && !is_label_key("") && !is_label_key("-a"));
        assert!(is_label_value("") && is_label_value("v1.2") && !is_label_value("a b"));
    }

    #[test]
    fn hostnames_take_one_leading_wildcard() {
        assert!(is_hostname("shop.example") && is_hostname("*.example"));
        for bad in ["*", "*.", "a.*.b", "10.0.0.1", "*.*.b", "Shop", "a:80"] {
            assert!(!is_hostname(bad), "{bad}");
        }
    }
}

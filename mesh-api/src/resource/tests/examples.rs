//! Examples that are not of HTTP, in the order in which tests count them.

use super::*;

pub(super) fn policies_and_routes_below_http() -> Vec<Value> {
    vec![
        object("AuthorizationPolicy", &json!({})),
        object(
            "Service",
            &json!({"ports": [
                {"name": "dns", "port": 53, "targetPort": 5353, "protocol": "udp"},
                {"name": "dns-tcp", "port": 53, "targetPort": 5353, "protocol": "tcp"},
            ]}),
        ),
        object(
            "TCPRoute",
            &json!({
                "parentRefs": [{"kind": "Service", "name": "db", "port": 5432}],
                "rules": [{"backendRefs": [{"name": "db-1", "port": 5432, "weight": 9}, {"name": "db-2", "port": 5432}]}],
            }),
        ),
        object(
            "UDPRoute",
            &json!({
                "parentRefs": [{"group": "", "kind": "Service", "name": "dns"}],
                "rules": [{"backendRefs": [{"name": "dns-1", "port": 53, "namespace": "x", "weight": 0}]}],
            }),
        ),
        object(
            "TrafficPolicy",
            &json!({
                "targetRefs": [{"kind": "Service", "name": "web"}], "balancing": "maglev",
                "affinity": {"timeout": "10m"}, "connectTimeout": "600ms", "slowStart": {"window": "30s"},
                "limits": {"maxConnections": 100, "maxConnectionsPerEndpoint": 20},
                "outlierEjection": {
                    "consecutiveConnectFailures": 3, "baseEjectionTime": "10s", "maxEjectedPercent": 30,
                },
                "locality": {"prefer": ["node", "zone"], "mode": "strict", "overprovisioningPercent": 100},
            }),
        ),
        object(
            "TransportPolicy",
            &json!({
                "selector": {"matchLabels": {"app": "db"}}, "mtls": {"mode": "off", "ports": [{"port": 80, "mode": "strict"}]}, "udp": "deny",
                "exclude": {
                    "outbound": {"ports": [9100], "cidrs": ["10.0.0.0/8", "fd00::/8"], "interfaces": ["net1"]},
                    "inbound": {},
                },
                "budget": {"connections": 100, "pending": 10}, "splice": true,
            }),
        ),
        object("TransportPolicy", &json!({})),
        object(
            "TransportPolicy",
            &json!({"egress": {"mode": "allowAll"}, "accessLog": {"percent": 5, "errors": true}}),
        ),
        object("Mesh", &json!({"egress": {"mode": "allowList"}})),
        object(
            "ExternalService",
            &json!({
                "hosts": ["api.example.com", "www.example.com"], "addresses": ["192.0.2.1", "2001:db8::1"],
                "ports": [
                    {"name": "http", "port": 80, "targetPort": 443, "protocol": "http", "tls": {
                        "mode": "originate", "sni": "api.example.com", "caFile": "/etc/ca.pem",
                        "subjectAltNames": ["example.com", "192.0.2.1"], "clientCertificate": "mesh",
                        "alpn": ["http/1.1"],
                    }},
                    {"name": "tls", "port": 443, "protocol": "tls"},
                    {"name": "db", "port": 5432, "protocol": "tcp", "tls": {"mode": "originate"}},
                ],
            }),
        ),
        object("ExternalService", &json!({"addresses": ["192.0.2.1"], "ports": [{"port": 1}]})),
        object(
            "Mesh",
            &json!({"extAuthz": [
                {"name": "opa", "service": {"namespace": "ops", "name": "opa", "port": 9191}, "timeout": "50ms", "onFailure": "allow"},
                {"name": "keys", "service": {"name": "keys", "port": 80}},
            ]}),
        ),
        object(
            "AuthorizationPolicy",
            &json!({"action": "custom", "provider": "opa", "rules": [{"to": [{"paths": ["/admin/*"]}]}]}),
        ),
    ]
}

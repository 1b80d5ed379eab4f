//! The settings of balancers that findings name, for HAProxy, nginx, Caddy, Envoy, Traefik and Go's `ReverseProxy`.

/// Against anything that buffers.
pub(super) const UNBUFFER: &str = "whatever lies between must pass events on as they come: no compression of \
                                   text/event-stream, no limit of its rate, no buffering (nginx: proxy_buffering off; Caddy: no \
                                   encode; Envoy: no buffer filter; Traefik: no buffering or compress middleware; Go's \
                                   ReverseProxy: FlushInterval -1; a CDN: its setting for this path)";

/// Against a compressor.
pub(super) const UNCOMPRESS: &str = "except text/event-stream (HAProxy: compression type; nginx: gzip_types; Caddy: encode's \
                                     match; Envoy: the compressor's content_type; Traefik: compress.excludedContentTypes)";

/// Where a silence is limited.
pub(super) const IDLE_TIMEOUTS: &str = "HAProxy: timeout client, timeout server; nginx: proxy_read_timeout; Caddy: the \
                                        transport's read_timeout; Envoy: stream_idle_timeout; Traefik and Go's ReverseProxy \
                                        have none; AWS: idle timeout";

/// Where the length of an answer is limited.
pub(super) const TOTAL_LIMITS: &str = "Caddy: the server's timeouts write; Envoy: the route's timeout, max_stream_duration; \
                                       HTTPRoute: timeouts.request; Traefik: respondingTimeouts.writeTimeout; Go: \
                                       http.Server's WriteTimeout; Google: the backend service's timeout; HAProxy and nginx \
                                       have none";

/// So that no client notices a stopped replica.
pub(super) const RETRY: &str = "let it check /readyz of the admin port, and ask another replica (HAProxy: option httpchk, \
                                retry-on, option redispatch; nginx: proxy_next_upstream; Caddy: health_uri, lb_try_duration; \
                                Envoy: health_checks, retry_policy; Traefik: healthCheck and a retry middleware; Go's \
                                ReverseProxy: a Transport that asks another replica)";

/// So that no event is published twice.
pub(super) const NO_RETRY_OF_POST: &str = "let the balancer never repeat a POST that it has sent (HAProxy: http-request \
                                           disable-l7-retry unless METH_GET; nginx: no non_idempotent in \
                                           proxy_next_upstream; Envoy: retry_on connect-failure alone for POST; Traefik: no \
                                           retry middleware for POST)";

/// So that each stream has a connection of its own to the replica.
pub(super) const HTTP_1: &str = "HAProxy: no `proto h2` on the server line; nginx: proxy_http_version 1.1; Caddy: versions 1.1 in \
                                 the transport; Envoy: no http2_protocol_options for the cluster; Traefik: http:// rather than \
                                 h2c://; Go: no http2.Transport";

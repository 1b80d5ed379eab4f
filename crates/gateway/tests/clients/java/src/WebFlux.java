import java.time.Duration;
import java.util.concurrent.atomic.AtomicReference;
import org.springframework.core.ParameterizedTypeReference;
import org.springframework.http.codec.ServerSentEvent;
import org.springframework.web.reactive.function.client.WebClient;
import org.springframework.web.reactive.function.client.WebClientResponseException;
import reactor.core.publisher.Flux;
import reactor.util.retry.Retry;

class WebFlux {
    private static final ParameterizedTypeReference<ServerSentEvent<String>> EVENT = new ParameterizedTypeReference<>() {};

    static void shown(String url) {
        WebClient client = WebClient.create(url);
        Flux<ServerSentEvent<String>> events = client.get().retrieve().bodyToFlux(EVENT);
        events.doOnNext(event -> Main.event(event.id(), String.valueOf(event.data())))
                .doOnError(Main::failed)
                .blockLast();
    }

    static void recommended(String url) {
        AtomicReference<String> lastEventId = new AtomicReference<>();
        WebClient client = WebClient.builder()
                .baseUrl(url)
                // A larger event causes an error each time it is sent. So the limit has to be at least --max-payload.
                .codecs(codecs -> codecs.defaultCodecs().maxInMemorySize(2 << 20))
                .build();
        Duration pause = Duration.ofSeconds(2);
        Flux.defer(() -> client.get()
                        .headers(headers -> {
                            if (lastEventId.get() != null) {
                                headers.set("Last-Event-ID", lastEventId.get());
                            }
                        })
                        .exchangeToFlux(response -> {
                            if (response.statusCode().value() == 204) {
                                Main.end();
                            }
                            if (response.statusCode().isError()) {
                                return response.<ServerSentEvent<String>>createError().flux();
                            }
                            return response.bodyToFlux(EVENT);
                        })
                        // The time of three heartbeats.
                        .timeout(Duration.ofSeconds(24)))
                .doOnNext(event -> {
                    // A stream's last block may be unfinished. Then it has no id.
                    if (event.id() != null) {
                        lastEventId.set(event.id());
                        Main.received(event.id(), event.event(), String.valueOf(event.data()));
                    }
                })
                .repeatWhen(ends -> ends.delayElements(pause))
                .retryWhen(Retry.fixedDelay(Long.MAX_VALUE, pause).filter(error ->
                        !(error instanceof WebClientResponseException answer && answer.getStatusCode().is4xxClientError())))
                .blockLast();
    }
}

import jakarta.ws.rs.client.Client;
import jakarta.ws.rs.client.ClientBuilder;
import jakarta.ws.rs.client.ClientResponseFilter;
import jakarta.ws.rs.client.WebTarget;
import jakarta.ws.rs.sse.SseEventSource;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;

class Jersey {
    static void shown(String url) {
        Client client = ClientBuilder.newBuilder().build();
        WebTarget target = client.target(url);
        SseEventSource source = SseEventSource.target(target).build();
        source.register(event -> Main.event(event.getId(), event.readData()), Main::failed);
        source.open();
    }

    private static final ScheduledExecutorService later = Executors.newSingleThreadScheduledExecutor();
    private static volatile String lastEventId;

    static void recommended(String url) {
        ClientResponseFilter ended = (request, response) -> {
            if (response.getStatus() == 204) {
                Main.end();
            }
        };
        Client client = ClientBuilder.newBuilder()
                .register(ended)
                // The time of three heartbeats.
                .readTimeout(24, TimeUnit.SECONDS)
                .build();
        open(client, url);
    }

    /** The library reconnects by itself, but gives up for good after a refused connection or some answers. */
    private static void open(Client client, String url) {
        WebTarget target = client.target(url);
        if (lastEventId != null) {
            target = target.queryParam("last_event_id", lastEventId);
        }
        SseEventSource source = SseEventSource.target(target).reconnectingEvery(2, TimeUnit.SECONDS).build();
        AtomicBoolean given = new AtomicBoolean();
        Runnable again = () -> {
            if (given.compareAndSet(false, true)) {
                source.close();
                later.schedule(() -> open(client, url), 2, TimeUnit.SECONDS);
            }
        };
        source.register(
                event -> {
                    // A stream's last block may be unfinished. Then it has no data.
                    if (event.getId() != null && !event.isEmpty()) {
                        lastEventId = event.getId();
                        Main.received(event.getId(), event.getName(), event.readData());
                    }
                },
                error -> again.run(),
                again);
        source.open();
    }
}

import time

import httpx
from httpx_sse import connect_sse
from main import end, event, received


def shown(url):
    with httpx.Client() as client:
        with connect_sse(client, "GET", url) as event_source:
            for sse in event_source.iter_sse():
                event(sse.id, sse.data)


def recommended(url):
    last_event_id, delay = "", 2.0
    # The time of three heartbeats. Without it, 5 s of silence are an error.
    with httpx.Client(timeout=httpx.Timeout(10, read=24)) as client:
        while True:
            headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
            try:
                with connect_sse(client, "GET", url, headers=headers) as event_source:
                    if event_source.response.status_code == 204:
                        end()
                    event_source.response.raise_for_status()
                    for sse in event_source.iter_sse():
                        last_event_id = sse.id
                        if sse.retry is not None:
                            delay = sse.retry / 1000
                        received(sse.id, sse.event, sse.data)
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise
            except httpx.TransportError:
                pass
            time.sleep(delay)

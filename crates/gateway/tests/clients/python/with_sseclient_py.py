import time

import requests
import sseclient
from main import end, event, received


def shown(url):
    response = requests.get(url, stream=True)
    for message in sseclient.SSEClient(response).events():
        event(message.id, message.data)


def recommended(url):
    last_event_id = ""
    while True:
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        try:
            # A read timeout of three heartbeats.
            with requests.get(url, headers=headers, stream=True, timeout=(10, 24)) as response:
                if response.status_code == 204:
                    end()
                response.raise_for_status()
                for message in sseclient.SSEClient(response).events():
                    # A block that was cut with its connection has data but no id, because the id is its last line.
                    if message.id:
                        last_event_id = message.id
                        received(message.id, message.event, message.data)
        except requests.HTTPError as error:
            if error.response.status_code < 500:
                raise
        except requests.RequestException:
            pass
        time.sleep(2)

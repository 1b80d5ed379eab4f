import time

import requests
from main import end, event, received
from requests_sse import EventSource, InvalidContentTypeError, InvalidStatusCodeError


def shown(url):
    with EventSource(url, timeout=30) as event_source:
        try:
            for message in event_source:
                event(message.last_event_id, message.data)
        except InvalidStatusCodeError:
            pass
        except InvalidContentTypeError:
            pass
        except requests.RequestException:
            pass


def recommended(url):
    last_event_id = ""
    while True:
        try:
            # A timeout of three heartbeats.
            with EventSource(url, timeout=24, latest_event_id=last_event_id) as event_source:
                for message in event_source:
                    last_event_id = message.last_event_id
                    received(last_event_id, message.type, message.data)
        except InvalidStatusCodeError as error:
            # The library gives up after any answer except 200.
            if error.status_code == 204:
                end()
            if error.status_code < 500:
                raise
        except requests.RequestException:
            pass
        time.sleep(2)

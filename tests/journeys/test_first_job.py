"""A newcomer's first job over HTTP: submitted, worked on, delivered, charged once, with a receipt."""

from tests.running import Client, Process


async def test_a_picture_from_a_prompt_to_a_receipt(client: Client, worker: Process) -> None:
    accepted = await client.generate(
        "local/canvas", input={"prompt": "a harbour at sunset", "num_outputs": 2, "size": 512}
    )
    assert accepted.status == 202
    assert accepted.json["tokens_charged"] == 2
    assert accepted.json["user_balance"] == 998

    job = await client.finished(accepted.json["job_id"])
    assert job["status"] == "succeeded"
    assert [output["index"] for output in job["outputs"]] == [0, 1]
    picture = await client.call("GET", job["outputs"][0]["url"])
    assert picture.status == 200
    assert picture.body.startswith(b"\x89PNG")

    receipt = (await client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")).json
    assert receipt["credits"] == {
        "before": "1000", "held": "2", "charged": "2", "refunded": "0", "after": "998", "unit_price": "1",
    }  # fmt: skip

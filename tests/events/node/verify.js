// Verifies requests by the official library: one JSON array of {secret, headers, body} in, one of true or the error's words out.
const { Webhook } = require("standardwebhooks");

const requests = JSON.parse(require("fs").readFileSync(0, "utf8"));
const answers = requests.map(({ secret, headers, body }) => {
  try {
    new Webhook(secret).verify(body, headers);
    return true;
  } catch (error) {
    return error.message;
  }
});
process.stdout.write(JSON.stringify(answers));

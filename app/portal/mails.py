"""The portal's mails, in the reader's language: plain text, one link at most, nothing to load."""

from app.accounts.invitations import Invited
from app.mail import Mail
from app.portal.i18n import Language


def confirm_address(language: Language, to: str, link: str) -> Mail:
    """To who signed up: the link that makes the account."""
    say = language.gettext
    return plain_mail(
        to,
        say("Confirm your e-mail address"),
        say("Somebody, probably you, asked for a Tollgate account at this address. Open this link to confirm it:"),
        link,
        say("It works for 24 hours. If it was not you, do nothing: there will be no account."),
    )


def has_account(language: Language, to: str, login: str, forgot: str) -> Mail:
    """To who signed up at an address that has a login already."""
    say = language.gettext
    return plain_mail(
        to,
        say("You have an account already"),
        say(
            "Somebody, probably you, asked for a Tollgate account at this address. There is one already. Sign in here:"
        ),
        login,
        say("If you forgot the password, set a new one here:"),
        forgot,
    )


def reset_password(language: Language, to: str, link: str) -> Mail:
    """To who forgot the password."""
    say = language.gettext
    return plain_mail(
        to,
        say("Set a new password"),
        say("Somebody, probably you, asked for a new password of your Tollgate account. Open this link to set it:"),
        link,
        say("It works for one hour, once. If it was not you, do nothing: the password stays as it is."),
    )


def password_changed(language: Language, to: str, forgot: str) -> Mail:
    """To whose password was changed, so that they notice if it was not them."""
    say = language.gettext
    return plain_mail(
        to,
        say("Your password was changed"),
        say("The password of your Tollgate account was changed, and every other session was ended."),
        say("If it was not you, set a new password at once:"),
        forgot,
    )


def second_factor_changed(language: Language, to: str, security: str, *, is_on: bool) -> Mail:
    """To whose second factor was turned on or off."""
    say = language.gettext
    subject = say("The second factor was turned on") if is_on else say("The second factor was turned off")
    event = (
        say("From now on, signing in to your Tollgate account takes a code beside the password.")
        if is_on
        else say("From now on, the password alone opens your Tollgate account.")
    )
    return plain_mail(
        to, subject, event, say("If it was not you, change your password and look at your sessions:"), security
    )


def invitation(language: Language, invited: Invited, by: str, link: str) -> Mail:
    """To who is invited into an organisation."""
    say = language.gettext
    return plain_mail(
        invited.email,
        say("You are invited to %(org)s on Tollgate") % {"org": invited.org_name},
        say(
            "%(by)s invites you to the organisation “%(org)s” on Tollgate. Your role: %(role)s. Open this link to join:"
        )
        % {"by": by, "org": invited.org_name, "role": role_name(language, invited.role)},
        link,
        say("It works for 7 days. If you do not want to join, do nothing."),
    )


def role_name(language: Language, role: str) -> str:
    """A role in words."""
    names = {
        "owner": language.gettext("Owner"),
        "admin": language.gettext("Administrator"),
        "billing": language.gettext("Billing"),
        "developer": language.gettext("Developer"),
        "viewer": language.gettext("Viewer"),
    }
    return names[role]


def plain_mail(to: str, subject: str, *paragraphs: str) -> Mail:
    """A mail of paragraphs, the last of them usually a link."""
    return Mail(to, subject, "\n\n".join(paragraphs) + "\n")
